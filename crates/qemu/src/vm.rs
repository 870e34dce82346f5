//! A virtual machine that runs: QEMU, its control socket and the guest's serial port in one.

use std::{
    collections::VecDeque,
    fs::File,
    io::Write,
    process::{ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use dirigible_frames::FRAME_SIZE;
use dirigible_workload::protocol::{EXIT_WELL, GuestTask, Message, exit_status};

use crate::{
    command_line::{self, DISK, SOCKET, Shape},
    diagnosis::{kind, lines_of_panic, of_status, unexpected},
    error::{Cause, RunError},
    limits::Limits,
    log::Log,
    options::QemuMachine,
    private_dir::PrivateDir,
    proc_files,
    process::Process,
    qmp::{Qmp, QmpError},
    serial::{Received, Serial},
    tether,
};

/// How long output is read from a guest that has panicked, and from QEMU when it ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// Time between two checks of QEMU's standard error.
const LOOK: Duration = Duration::from_millis(500);
/// What QEMU prints there when KVM fails.
const KVM_ERROR: &str = "KVM internal error";

/// A machine that runs. It is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Vm<'m> {
    machine: &'m QemuMachine,
    /// The task's name, for the log's file name.
    name: &'m str,
    shape: Shape,
    started: Instant,
    process: Process,
    stdin: Option<ChildStdin>,
    serial: Serial,
    /// Received while something else was waited for.
    queued: VecDeque<(Instant, Received)>,
    qmp: Option<Qmp>,
    /// Holds socket and disk until QEMU has opened them. It is removed then, so that no file is left if this process is
    /// killed.
    folder: Option<PrivateDir>,
    last: (Instant, String),
}

impl<'m> Vm<'m> {
    /// Starts a machine of `shape` that does `task`.
    pub(crate) fn start(
        machine: &'m QemuMachine,
        shape: Shape,
        task: &GuestTask,
        name: &'m str,
    ) -> Result<Self, RunError> {
        let mut vm = Self::spawn(machine, shape, task, name).map_err(RunError::before_start)?;
        if shape.control
            && let Err(error) = vm.connect()
        {
            // If the guest has ended already, its messages are still to be read.
            if !vm.has_ended() || !vm.has_message() {
                let cause = vm.of_qmp(error);
                return Err(vm.fail(cause));
            }
        }
        Ok(vm)
    }

    fn spawn(
        machine: &'m QemuMachine,
        shape: Shape,
        task: &GuestTask,
        name: &'m str,
    ) -> Result<Self, Cause> {
        let host = |what| move |error| Cause::Host { what, error };
        let folder = PrivateDir::new().map_err(host("no directory for QEMU's files"))?;
        let log = folder.path().join("serial.log");
        let log = Log::new(&log).map_err(host("no file for the serial port's output"))?;
        if shape.disk_bytes > 0 {
            // Sparse: it takes what the guest writes.
            File::create_new(folder.path().join(DISK))
                .and_then(|file| file.set_len(shape.disk_bytes))
                .map_err(host("no file for the guest's disk"))?;
        }
        let task = serde_json::to_string(task).map_err(|error| Cause::Host {
            what: "the task cannot be written as JSON",
            error: error.into(),
        })?;
        let mut command = Command::new(&machine.program);
        command
            .args(command_line::arguments(
                machine,
                &shape,
                &task,
                folder.path(),
            ))
            .stdin(Stdio::piped());
        if shape.base_pages {
            tether::without_huge_pages(&mut command);
        }
        let started = Instant::now();
        let (mut process, stdout) =
            Process::start(&mut command).map_err(host("QEMU cannot be started"))?;
        Ok(Self {
            machine,
            name,
            shape,
            started,
            stdin: process.take_stdin(),
            process,
            serial: Serial::listen(stdout, log),
            queued: VecDeque::new(),
            qmp: None,
            folder: Some(folder),
            last: (started, "nothing".into()),
        })
    }

    fn connect(&mut self) -> Result<(), QmpError> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let limits = self.limits();
        let process = &mut self.process;
        let alive = || process.ended().is_none();
        let mut qmp = Qmp::connect(&folder.path().join(SOCKET), limits.answer, alive)?;
        if self.shape.disk_bytes == 0 {
            self.folder = None;
        }
        let gib = self.shape.ram().div_ceil(1 << 30);
        let touching = match self.shape.touched {
            true => limits.touch_gib.saturating_mul(gib.min(1 << 20) as u32),
            false => Duration::ZERO,
        };
        qmp.greet(limits.answer + touching)?;
        self.qmp = Some(qmp);
        Ok(())
    }

    /// The time limits.
    pub(crate) fn limits(&self) -> Limits {
        self.machine.limits()
    }

    /// When QEMU was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// When the guest's last message so far came, and of what kind it was.
    pub(crate) fn last(&self) -> (Instant, &str) {
        (self.last.0, &self.last.1)
    }

    /// Whether QEMU has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.wait(DRAIN_LIMIT).is_some()
    }

    /// The guest's next message and when it came; `None` if there is none by `until`.
    ///
    /// # Errors
    ///
    /// The guest panicked, failed, reset, or sent a malformed message; QEMU has ended.
    pub(crate) fn next(&mut self, until: Instant) -> Result<Option<(Instant, Message)>, Cause> {
        loop {
            let look = until.min(Instant::now() + LOOK);
            let Some((at, output)) = self.receive(look) else {
                // KVM then stops the guest; only standard error tells.
                if self.process.stderr_has(KVM_ERROR) {
                    return Err(Cause::Kvm);
                }
                if look == until {
                    return Ok(None);
                }
                continue;
            };
            match output {
                Received::Line(_) => {}
                Received::Damaged(line, why) => return Err(self.damaged(line, why)),
                Received::End => return Err(self.ended()),
                Received::Message(Message::Panic { why }) => return Err(self.panic(why)),
                Received::Message(Message::Failed { why }) => return Err(Cause::Failed { why }),
                Received::Message(message) => {
                    self.last = (at, kind(&message));
                    return Ok(Some((at, message)));
                }
            }
        }
    }

    /// The next output of any kind; `None` if there is none by `until`.
    fn receive(&mut self, until: Instant) -> Option<(Instant, Received)> {
        match self.queued.pop_front() {
            None => self.serial.next(until),
            output => output,
        }
    }

    /// Waits for the guest's first line, and returns when it came.
    pub(crate) fn hello(&mut self) -> Result<Instant, Cause> {
        let limit = self.limits().hello;
        match self.next(Instant::now() + limit)? {
            Some((at, Message::Hello { .. })) => {
                // By now QEMU has opened all that it needs.
                self.folder = None;
                Ok(at)
            }
            Some((_, other)) => Err(unexpected(&other, "hello")),
            None => Err(Cause::NoHello {
                accel: self.machine.accel,
                limit,
            }),
        }
    }

    /// Sends a byte to the guest's serial port.
    pub(crate) fn send(&mut self, byte: u8) -> Result<(), Cause> {
        let sent = match &mut self.stdin {
            Some(stdin) => stdin.write_all(&[byte]).and_then(|()| stdin.flush()),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        // That QEMU has ended is found when its output is read.
        match sent {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Cause::Host {
                what: "the guest's serial port cannot be written to",
                error,
            }),
            _ => Ok(()),
        }
    }

    /// Sets the balloon's target.
    pub(crate) fn set_balloon(&mut self, frames: u64) -> Result<(), Cause> {
        let left = self.shape.ram().saturating_sub(frames * FRAME_SIZE as u64);
        self.on_qmp(|qmp| qmp.balloon(left))
    }

    /// What the balloon holds in frames, as the guest's driver has reported it to QEMU.
    pub(crate) fn balloon(&mut self) -> Result<u64, Cause> {
        let left = self.on_qmp(Qmp::query_balloon)?;
        Ok(self.shape.ram().saturating_sub(left) / FRAME_SIZE as u64)
    }

    fn on_qmp<T>(&mut self, act: impl FnOnce(&mut Qmp) -> Result<T, QmpError>) -> Result<T, Cause> {
        let result = match &mut self.qmp {
            Some(qmp) => act(qmp),
            None => Err(QmpError::Gone),
        };
        result.map_err(|error| self.of_qmp(error))
    }

    /// Bytes of the guest's RAM that are resident on the host.
    pub(crate) fn resident(&self) -> Result<u64, Cause> {
        let resident = proc_files::resident(self.process.id(), self.shape.ram());
        resident.map_err(|error| Cause::Host {
            what: "cannot read the resident memory of QEMU",
            error,
        })
    }

    /// Waits until the guest turns itself off, after its last message. Returns the milliseconds that QEMU has spent in
    /// user mode and in the kernel.
    pub(crate) fn finish(&mut self) -> Result<(u64, u64), Cause> {
        let limit = self.limits().end;
        let until = Instant::now() + limit;
        loop {
            match self.receive(until) {
                None => return Err(Cause::NoEnd { limit }),
                Some((_, Received::End)) => break,
                Some((_, Received::Message(Message::Panic { why }))) => return Err(self.panic(why)),
                Some((_, Received::Message(Message::Failed { why }))) => {
                    return Err(Cause::Failed { why });
                }
                Some(_) => {}
            }
        }
        // Before the wait, which takes its entry out of /proc.
        let times = proc_files::process_times(self.process.id());
        match self.process.wait(limit) {
            None => Err(Cause::NoEnd { limit }),
            Some(status) if status.code() == Some(exit_status(EXIT_WELL)) => Ok(times),
            Some(status) => Err(of_status(status)),
        }
    }

    /// Ends QEMU, keeps the log, and returns the error.
    pub(crate) fn fail(mut self, cause: Cause) -> RunError {
        self.process.kill();
        RunError {
            cause,
            stderr: self.process.stderr_text(),
            log: self.serial.keep_log(&self.machine.guest, self.name),
        }
    }

    /// Ends QEMU. If the run failed, keeps the log and returns the error.
    pub(crate) fn conclude<T>(self, result: Result<T, Cause>) -> Result<T, RunError> {
        result.map_err(|cause| self.fail(cause))
    }

    /// The cause if the port is closed.
    fn ended(&mut self) -> Cause {
        let limit = self.limits().end;
        match self.process.wait(limit) {
            Some(status) => of_status(status),
            None => Cause::NoEnd { limit },
        }
    }

    /// The cause for a panic, with the lines that the kernel prints after it.
    fn panic(&mut self, why: String) -> Cause {
        self.drain();
        let lines = lines_of_panic(self.queued.iter().map(|(_, output)| output));
        Cause::Panic { why, lines }
    }

    /// The cause for a malformed message: often a panic cut it off. Then the cause is the panic.
    fn damaged(&mut self, line: String, why: String) -> Cause {
        match self.reason_from_guest() {
            Some(cause) => cause,
            None => Cause::Damaged { line, why },
        }
    }

    /// The cause if the control socket failed. If that is because the guest failed, its reason.
    fn of_qmp(&mut self, error: QmpError) -> Cause {
        if !matches!(error, QmpError::Gone) {
            return Cause::Qmp(error);
        }
        let ended = self.process.wait(DRAIN_LIMIT);
        match (self.reason_from_guest(), ended) {
            (Some(cause), _) => cause,
            (None, Some(status)) => of_status(status),
            (None, None) => Cause::Qmp(error),
        }
    }

    /// The reason that the guest gives for its end, if any. All output stays queued.
    fn reason_from_guest(&mut self) -> Option<Cause> {
        self.drain();
        let mut all = self.queued.iter().map(|(_, output)| output);
        while let Some(output) = all.next() {
            match output {
                Received::Message(Message::Panic { why }) => {
                    return Some(Cause::Panic {
                        why: why.clone(),
                        lines: lines_of_panic(all),
                    });
                }
                Received::Message(Message::Failed { why }) => {
                    return Some(Cause::Failed { why: why.clone() });
                }
                _ => {}
            }
        }
        None
    }

    /// Whether a message of the guest is queued.
    fn has_message(&mut self) -> bool {
        self.drain();
        let is_message = |(_, output): &(Instant, Received)| matches!(output, Received::Message(_));
        self.queued.iter().any(is_message)
    }

    /// Queues output until the port is closed, at most [`DRAIN_LIMIT`] long.
    fn drain(&mut self) {
        let until = Instant::now() + DRAIN_LIMIT;
        while !matches!(self.queued.back(), Some((_, Received::End))) {
            match self.serial.next(until) {
                Some(output) => self.queued.push_back(output),
                None => break,
            }
        }
    }
}
