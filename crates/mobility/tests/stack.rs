//! How much stack it takes to build [`Mobility`] in place: kernels have 16 to 32 KiB.
#![cfg(not(shuttle))]
#![allow(missing_docs)]

mod machine;

use std::ffi::c_void;
use std::mem::MaybeUninit;

use dirigible_frames::{Config, FrameAllocator, Pfn, ZoneConfig};
use dirigible_mobility::{CompactionConfig, Mobility};
use machine::{MARKS, MockPlatform};

/// What a thread's own start needs comes on top of the 32 KiB.
const STACK: usize = 64 << 10;
const PAINT: u8 = 0xa5;

#[repr(C, align(4096))]
struct Stack([u8; STACK]);

struct Job<'j> {
    run: &'j mut (dyn FnMut() + Send),
    /// The address of a local of the function that calls `run`.
    top: usize,
}

extern "C" fn call(job: *mut c_void) -> *mut c_void {
    // SAFETY: `used_by` passes a pointer to a job, which outlives the thread and is used by it alone.
    let job = unsafe { &mut *job.cast::<Job<'_>>() };
    let here = 0u8;
    job.top = (&raw const here).addr();
    (job.run)();
    std::ptr::null_mut()
}

/// How far a thread that runs `run` writes down its stack, from where it is called. What starting and ending the thread
/// takes may come on top.
fn used_by(run: &mut (dyn FnMut() + Send)) -> usize {
    let mut job = Job { run, top: 0 };
    let mut stack = vec![Stack([PAINT; STACK])];
    // SAFETY: the attributes are initialized before they are used and destroyed afterwards. The stack is aligned to
    // pages, of the size that is given, and untouched by this thread until the other one has ended. `job` lives until
    // then, too.
    unsafe {
        let mut attributes = MaybeUninit::uninit();
        assert_eq!(libc::pthread_attr_init(attributes.as_mut_ptr()), 0);
        let memory = stack.as_mut_ptr().cast();
        let set = libc::pthread_attr_setstack(attributes.as_mut_ptr(), memory, STACK);
        assert_eq!(set, 0);
        let mut thread = MaybeUninit::uninit();
        let argument = (&raw mut job).cast();
        let made = libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), call, argument);
        assert_eq!(made, 0);
        let joined = libc::pthread_join(thread.assume_init(), std::ptr::null_mut());
        assert_eq!(joined, 0);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
    }
    let untouched = stack[0].0.iter().take_while(|&&byte| byte == PAINT);
    let lowest = stack.as_ptr().addr() + untouched.count();
    job.top - lowest
}

#[test]
fn building_in_place_takes_little_stack() {
    let range = [Pfn::new(0)..Pfn::new(4 * 512)];
    let layout = Config {
        zones: &[ZoneConfig {
            name: "zone",
            ranges: &range,
            watermarks: MARKS,
            reserve_blocks: 0,
        }],
        ..Config::default()
    };
    let mut metadata = vec![0; FrameAllocator::metadata_bytes(&layout).unwrap()];
    let frames = FrameAllocator::new(&layout, &mut metadata).unwrap();
    let platform = MockPlatform::default();
    let config = CompactionConfig::default();
    let mut slot = Box::new_uninit();

    let took = used_by(&mut || {
        let built = Mobility::new_in(&mut slot, &frames, &platform, config);
        assert_eq!(built.isolated_frames(), 0);
        assert_eq!(built.verify(), Ok(()));
    });
    let size = size_of::<Mobility<'_, MockPlatform>>();
    println!("{size} bytes, built on {took} bytes of stack");
    assert!((40 << 10..48 << 10).contains(&size), "{size} bytes");
    assert!(took < 8 << 10, "{took} bytes of stack");
}

#[test]
fn a_large_value_on_the_stack_is_measured() {
    let took = used_by(&mut || {
        std::hint::black_box([1u8; 20 << 10]);
    });
    assert!((20 << 10..24 << 10).contains(&took), "{took} bytes");
}
