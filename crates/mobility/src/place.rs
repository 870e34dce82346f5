//! Building [`Mobility`] where it is to stand, and lending out the places that evacuations work in: the only `unsafe`
//! of this crate.
//!
//! Both concern the same 43 KiB. A kernel's stack has 16 to 32 KiB, so no value of that size may pass through it:
//! each part is written where it belongs, arrays element by element. And a lock's guard is a reference, which an
//! evacuation that stops half way cannot keep: so one word guards a place here, the mark of its holder.

#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};

use arrayvec::ArrayVec;
use dirigible_frames::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use dirigible_frames::{FrameAllocator, Pfn, Platform};

use crate::account::Accounts;
use crate::registry::Registry;
use crate::workspace::Workspace;
use crate::zone::zone_states;
use crate::{CompactionConfig, Mobility, MovePair};

/// Evacuations that can run at the same time.
pub(crate) const PLACES: usize = 3;

/// The mark of a place that nobody holds.
const VACANT: u64 = 0;
/// The mark of the place of the open piece of background compaction, between two steps.
const PARKED: u64 = u64::MAX;

/// Builds `$slot` (of type `Self`) field by field, each by a function from its uninitialized place to itself.
///
/// A field that is missing in the list does not compile, nor does one that is named twice.
macro_rules! build {
    ($slot:expr, { $($field:ident: $init:expr),+ $(,)? }) => {{
        // Without `..`: all fields are named.
        let _ = |built: &Self| {
            let Self { $($field: _),+ } = built;
        };
        let slot: &mut MaybeUninit<Self> = $slot;
        let place = slot.as_mut_ptr();
        $(
            // SAFETY: `place` is aligned and valid for reads and writes of a `Self`, since it comes from an exclusive
            // reference to a `MaybeUninit<Self>`; so its field is as well. Nothing else refers to the field meanwhile.
            let field = unsafe { slot_at(&raw mut (*place).$field) };
            build_in(field, $init);
        )+
        // SAFETY: the pattern above names all fields, and each of them was written.
        unsafe { slot.assume_init_mut() }
    }};
}

/// The slot for a value at `place`.
///
/// # Safety
///
/// `place` is aligned and valid for reads and writes, and nothing else refers to it for as long as the slot is used.
unsafe fn slot_at<'s, T>(place: *mut T) -> &'s mut MaybeUninit<T> {
    // SAFETY: a `MaybeUninit<T>` has the layout of a `T` and may hold anything; the rest is the caller's promise.
    unsafe { &mut *place.cast() }
}

/// Builds one value in its slot; that `init` gives a reference shows that it has written it.
fn build_in<T>(slot: &mut MaybeUninit<T>, init: impl FnOnce(&mut MaybeUninit<T>) -> &mut T) {
    init(slot);
}

/// Builds an array, each element by `init`, in its place.
fn build_array<T, const N: usize>(
    slot: &mut MaybeUninit<[T; N]>,
    init: impl Fn(&mut MaybeUninit<T>) -> &mut T,
) -> &mut [T; N] {
    let first = slot.as_mut_ptr().cast::<T>();
    for at in 0..N {
        // SAFETY: `at` is below the array's length, so this is the place of one of its elements: aligned, valid for
        // reads and writes, and exclusive, as the slot is.
        build_in(unsafe { slot_at(first.add(at)) }, &init);
    }
    // SAFETY: all `N` elements were written.
    unsafe { slot.assume_init_mut() }
}

impl<'a, P: Platform + ?Sized> Mobility<'a, P> {
    /// Mobility for the frames of `frames`, without owners yet, by value.
    ///
    /// On its way to where it stays it may lie on the stack, twice where nothing is optimized: where stacks are
    /// small, use [`new_in`](Self::new_in).
    pub fn new(frames: &'a FrameAllocator<'a>, platform: &'a P, config: CompactionConfig) -> Self {
        let mut slot = MaybeUninit::uninit();
        Self::new_in(&mut slot, frames, platform, config);
        // SAFETY: `new_in` has initialized it.
        unsafe { slot.assume_init() }
    }

    /// The same, built in `slot`: a static, a page, a box.
    ///
    /// The slot takes `size_of::<Mobility<P>>()` bytes, about 43 KiB. The call takes less than 1 KiB of stack, and in
    /// a build without optimization 10 KiB.
    pub fn new_in<'s>(
        slot: &'s mut MaybeUninit<Self>,
        frames: &'a FrameAllocator<'a>,
        platform: &'a P,
        config: CompactionConfig,
    ) -> &'s mut Self {
        build!(slot, {
            frames: |slot| slot.write(frames),
            platform: |slot| slot.write(platform),
            config: |slot| slot.write(config.in_range()),
            registry: |slot| slot.write(Registry::new()),
            accounts: |slot| slot.write(Accounts::default()),
            settled: |slot| slot.write(AtomicU64::new(0)),
            background_runs: |slot| slot.write(AtomicBool::new(false)),
            background: |slot| slot.write(Mutex::new(None)),
            zones: |slot| slot.write(zone_states()),
            workspaces: Workspaces::new_in,
            observer: |slot| slot.write(Mutex::new(None)),
        })
    }
}

impl Workspace {
    fn new_in(slot: &mut MaybeUninit<Self>) -> &mut Self {
        let nothing = MovePair::base(Pfn::new(0), Pfn::new(0));
        build!(slot, {
            pairs: |slot| build_array(slot, |pair| pair.write(nothing)),
            held: |slot| slot.write(ArrayVec::new_const()),
        })
    }
}

/// A workspace and who has it.
struct Place {
    /// The caller that it is lent to (`Platform::caller`), [`VACANT`], or [`PARKED`].
    holder: AtomicU64,
    space: UnsafeCell<Workspace>,
}

// SAFETY: `space` is reached through a `Lease` only, and for each place there is at most one (see `Lease`). So a
// shared place passes its workspace from thread to thread, which `Send` allows, and shares it through a shared lease,
// which `Sync` allows.
unsafe impl Sync for Place where Workspace: Send + Sync {}

impl Place {
    fn new_in(slot: &mut MaybeUninit<Self>) -> &mut Self {
        build!(slot, {
            holder: |slot| slot.write(AtomicU64::new(VACANT)),
            space: |slot| {
                let inside = slot.as_mut_ptr().cast::<MaybeUninit<Workspace>>();
                // SAFETY: an `UnsafeCell` has the layout of what is in it, and a `MaybeUninit` may hold anything; the
                // slot is borrowed exclusively.
                Workspace::new_in(unsafe { &mut *inside });
                // SAFETY: what is in the cell is initialized, and there is nothing else to it.
                unsafe { slot.assume_init_mut() }
            },
        })
    }
}

/// All places.
pub(crate) struct Workspaces {
    places: [Place; PLACES],
}

/// A place, for as long as this lives.
///
/// Made in one way only: by the compare-and-exchange that puts a caller's mark where [`VACANT`] or [`PARKED`] was.
/// Ended in one way only: by the store of one of these, after which the lease is not used any more. So a place has one
/// lease at most.
pub(crate) struct Lease<'w> {
    place: &'w Place,
}

impl Lease<'_> {
    /// Leaves the place to the next step of background compaction.
    pub(crate) fn park(self) {
        // Release pairs with the acquire in `take`, as in `drop`, which does not come.
        self.place.holder.store(PARKED, Ordering::Release);
        core::mem::forget(self);
    }
}

impl Deref for Lease<'_> {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        // SAFETY: this is the place's only lease, and while it is borrowed nobody has `&mut` from it.
        unsafe { &*self.place.space.get() }
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Workspace {
        // SAFETY: this is the place's only lease, and it is borrowed exclusively.
        unsafe { &mut *self.place.space.get() }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Release pairs with the acquire in `take`: the next holder finds the workspace as it is now.
        self.place.holder.store(VACANT, Ordering::Release);
    }
}

impl Workspaces {
    fn new_in(slot: &mut MaybeUninit<Self>) -> &mut Self {
        build!(slot, { places: |slot| build_array(slot, Place::new_in) })
    }

    /// A vacant place, now lent to `caller`.
    pub(crate) fn try_lend(&self, caller: u64) -> Option<Lease<'_>> {
        self.take(VACANT, caller)
    }

    /// The parked place, now lent to `caller`.
    pub(crate) fn resume(&self, caller: u64) -> Option<Lease<'_>> {
        self.take(PARKED, caller)
    }

    /// The first place with the mark `free`, which is [`VACANT`] or [`PARKED`], now lent to `caller`.
    fn take(&self, free: u64, caller: u64) -> Option<Lease<'_>> {
        // A platform that gives one of the marks as a caller breaks its contract; it gets no place, and breaks nothing
        // else.
        if caller == VACANT || caller == PARKED {
            return None;
        }
        let place = self.places.iter().find(|place| {
            // Acquire pairs with the release of the holder before.
            place
                .holder
                .compare_exchange(free, caller, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        })?;
        Some(Lease { place })
    }

    /// Whether `caller` has a place: then this is a call from inside compaction.
    pub(crate) fn has(&self, caller: u64) -> bool {
        // Relaxed: only the caller that wrote its mark draws a conclusion from it.
        self.places
            .iter()
            .any(|place| place.holder.load(Ordering::Relaxed) == caller)
    }
}
