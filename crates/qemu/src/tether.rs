//! What is set in a child before it begins: that it does not outlive its parent, and that it gets no huge pages.
#![allow(unsafe_code)]

use std::{io, os::unix::process::CommandExt, process::Command};

use rustix::{
    process::{Signal, getpid, getppid, set_parent_process_death_signal},
    thread::disable_transparent_huge_pages,
};

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

/// Has the kernel back the child's memory by base pages alone, whatever the child asks for.
pub(crate) fn without_huge_pages(command: &mut Command) {
    let set = || Ok(disable_transparent_huge_pages(true)?);
    // SAFETY: as in `tie`: one system call, and an error made from its number.
    unsafe { command.pre_exec(set) };
}
