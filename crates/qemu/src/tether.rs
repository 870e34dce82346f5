//! A child that does not outlive its parent.
#![allow(unsafe_code)]

use std::{io, os::unix::process::CommandExt, process::Command};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// Has the kernel kill the child when the thread that starts it ends, for whatever reason.
pub(crate) fn tie(command: &mut Command) {
    let parent = getpid();
    let tie = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // If the parent has died before the call, there is no signal.
        match getppid() {
            Some(now) if now == parent => Ok(()),
            _ => Err(io::Error::from_raw_os_error(3)),
        }
    };
    // SAFETY: between fork and exec only what is async-signal-safe may run, because locks that other threads held are
    // held for ever in the child. The closure makes two system calls directly and builds an error from a number: it
    // takes no lock, allocates nothing and drops nothing.
    unsafe { command.pre_exec(tie) };
}
