//! Settings of the virtio-blk driver.

/// Settings of a [`VirtioDisk`](crate::VirtioDisk). Times are nanoseconds on the platform's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskConfig {
    /// The most requests in flight: 1 to [`MAX_DEPTH`](crate::MAX_DEPTH), others are taken for the nearest of these.
    pub depth: usize,
    /// A request that is not answered for so long makes the driver reset the device.
    pub timeout_ns: u64,
    /// While requests are in flight, how often the device is asked whether it has failed.
    pub ask_ns: u64,
    /// How long the device may take to confirm a reset.
    pub reset_timeout_ns: u64,
    /// How often in a row the device is reset and set up anew, without a request that it does well in between. After
    /// that it stays reset.
    pub restart_limit: u32,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            depth: crate::MAX_DEPTH,
            timeout_ns: 30_000_000_000,
            ask_ns: 1_000_000_000,
            reset_timeout_ns: 1_000_000_000,
            restart_limit: 3,
        }
    }
}
