//! PCI configuration space: through ports, or memory-mapped on machines without these ports.

use core::sync::atomic::{AtomicU32, Ordering};

use dirigible_frames::FRAME_SIZE;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Cam, Command, ConfigurationAccess, DeviceFunction, PciRoot,
};
use x86_64::instructions::port::Port;

use super::physical::Register;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// Physical address of configuration space on microvm.
const MEMORY: u64 = 0xe000_0000;
/// Where device registers are placed if firmware has not placed them, or has placed them above [`REACH`]. The space is
/// above the low RAM of all machine types, and below the addresses that firmware uses and microvm's configuration
/// space.
const FREE_SPACE: u32 = 0xc000_0000;
/// The kernel's window maps device registers below this physical address.
pub const REACH: u64 = 1 << 32;
/// The free space ends where microvm has its configuration space.
const FREE_END: u32 = 0xe000_0000;
/// The lowest free address in that space.
static NEXT: AtomicU32 = AtomicU32::new(FREE_SPACE);

/// How configuration space is accessed.
#[derive(Clone, Copy, Debug)]
pub enum Configuration {
    /// Through an address and a data port.
    Ports,
    /// Memory-mapped.
    Memory,
}

impl Configuration {
    /// Finds out which of the two works; `None` for a machine without PCI.
    pub fn find() -> Option<Self> {
        [Self::Ports, Self::Memory].into_iter().find(|access| {
            let host_bridge = DeviceFunction {
                bus: 0,
                device: 0,
                function: 0,
            };
            access.read_word(host_bridge, 0) as u16 != 0xffff
        })
    }

    fn address(device: DeviceFunction, offset: u8) -> u32 {
        1 << 31 | Cam::MmioCam.cam_offset(device, offset)
    }

    fn register(device: DeviceFunction, offset: u8) -> Register {
        let place = u64::from(Cam::Ecam.cam_offset(device, offset));
        // SAFETY: configuration space. The callers are responsible for what they write there.
        unsafe { Register::new(MEMORY + place) }
    }
}

impl ConfigurationAccess for Configuration {
    fn read_word(&self, device: DeviceFunction, offset: u8) -> u32 {
        match self {
            // SAFETY: the two ports of configuration space. Only one CPU sets devices up, so the accesses are not
            // interleaved.
            Self::Ports => unsafe {
                Port::new(ADDRESS).write(Self::address(device, offset));
                Port::new(DATA).read()
            },
            Self::Memory => Self::register(device, offset).read(),
        }
    }

    fn write_word(&mut self, device: DeviceFunction, offset: u8, data: u32) {
        match self {
            // SAFETY: as above.
            Self::Ports => unsafe {
                Port::new(ADDRESS).write(Self::address(device, offset));
                Port::new(DATA).write(data);
            },
            Self::Memory => Self::register(device, offset).write(data),
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// Places a device's memory registers below 4 GiB if firmware has not, and enables its registers and its access to
/// memory.
pub fn enable(root: &mut PciRoot<Configuration>, device: DeviceFunction) {
    let mut index = 0;
    while index < 6 {
        let Ok(info) = root.bar_info(device, index) else {
            break;
        };
        let wide = info.as_ref().is_some_and(BarInfo::takes_two_entries);
        let place = info.as_ref().and_then(BarInfo::memory_address_size);
        if let Some((now, size)) = place
            && (now == 0 || now >= REACH)
            && size > 0
            && size < 1 << 24
        {
            let align = (size as u32).max(FRAME_SIZE as u32);
            // Relaxed: only one CPU sets devices up.
            let address = NEXT.load(Ordering::Relaxed).next_multiple_of(align);
            if address + align > FREE_END {
                break;
            }
            NEXT.store(address + align, Ordering::Relaxed);
            if wide {
                root.set_bar_64(device, index, u64::from(address));
            } else {
                root.set_bar_32(device, index, address);
            }
        }
        index += if wide { 2 } else { 1 };
    }
    let (_, command) = root.get_status_command(device);
    root.set_command(
        device,
        command | Command::MEMORY_SPACE | Command::BUS_MASTER,
    );
}
