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
    command_line::{self, DISK, DISK_BYTES, SOCKET, Shape},
    diagnosis::{kind, lines_of_panic, of_status, out_of_turn},
    error::{Cause, RunError},
    limits::Limits,
    log::Log,
    options::QemuMachine,
    private_dir::PrivateDir,
    proc_files,
    process::Process,
    qmp::{Qmp, QmpError},
    serial::{Heard, Serial},
};

/// How long a guest that has panicked, and QEMU at its end, are listened to.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time between two looks at QEMU's standard error.
const LOOK: Duration = Duration::from_millis(500);
/// What QEMU says there when KVM has given up.
const KVM_ERROR: &str = "KVM internal error";

/// A machine that runs. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Vm<'m> {
    machine: &'m QemuMachine,
    /// What the task is called, for the log's name.
    name: &'m str,
    shape: Shape,
    started: Instant,
    process: Process,
    stdin: Option<ChildStdin>,
    serial: Serial,
    /// Heard while something else was looked for.
    heard: VecDeque<(Instant, Heard)>,
    qmp: Option<Qmp>,
    /// Holds socket and disk until QEMU has opened them. Then it goes, so that nothing is left however this process ends.
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
            // A guest that is through already was quick: what it said is still to be heard.
            if !vm.has_ended() || !vm.has_spoken() {
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
        if shape.disk {
            File::create_new(folder.path().join(DISK))
                .and_then(|file| file.set_len(DISK_BYTES))
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
            heard: VecDeque::new(),
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
        if !self.shape.disk {
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

    /// How long is waited for what.
    pub(crate) fn limits(&self) -> Limits {
        self.machine.limits()
    }

    /// When QEMU was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// When the guest said its last message so far, and what kind it was.
    pub(crate) fn last(&self) -> (Instant, &str) {
        (self.last.0, &self.last.1)
    }

    /// Whether QEMU has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.wait(LAST_WORDS).is_some()
    }

    /// The guest's next message and when it came; `None` when there is none until then.
    ///
    /// # Errors
    ///
    /// The guest panicked, failed, reset, or said what is no message; QEMU has ended.
    pub(crate) fn next(&mut self, until: Instant) -> Result<Option<(Instant, Message)>, Cause> {
        loop {
            let look = until.min(Instant::now() + LOOK);
            let Some((at, heard)) = self.hear(look) else {
                // It stops the guest and tells nobody but standard error.
                if self.process.complains(KVM_ERROR) {
                    return Err(Cause::Kvm);
                }
                if look == until {
                    return Ok(None);
                }
                continue;
            };
            match heard {
                Heard::Line(_) => {}
                Heard::Damaged(line, why) => return Err(self.damaged(line, why)),
                Heard::End => return Err(self.ended()),
                Heard::Said(Message::Panic { why }) => return Err(self.panic(why)),
                Heard::Said(Message::Failed { why }) => return Err(Cause::Failed { why }),
                Heard::Said(message) => {
                    self.last = (at, kind(&message));
                    return Ok(Some((at, message)));
                }
            }
        }
    }

    /// What comes next, whatever it is.
    fn hear(&mut self, until: Instant) -> Option<(Instant, Heard)> {
        match self.heard.pop_front() {
            None => self.serial.next(until),
            heard => heard,
        }
    }

    /// Waits for the guest's first line, and says when it came.
    pub(crate) fn hello(&mut self) -> Result<Instant, Cause> {
        let limit = self.limits().hello;
        match self.next(Instant::now() + limit)? {
            Some((at, Message::Hello { .. })) => {
                // By now QEMU has opened all that it needs.
                self.folder = None;
                Ok(at)
            }
            Some((_, other)) => Err(out_of_turn(&other, "hello")),
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
        // A QEMU that has ended is met on its output.
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

    /// What the balloon holds, as the guest's driver has told QEMU.
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
            what: "the host does not say what memory of QEMU is resident",
            error,
        })
    }

    /// Waits for the end that the guest makes itself, after its last message: the milliseconds that QEMU has spent in user
    /// mode and in the kernel.
    pub(crate) fn finish(&mut self) -> Result<(u64, u64), Cause> {
        let limit = self.limits().end;
        let until = Instant::now() + limit;
        loop {
            match self.hear(until) {
                None => return Err(Cause::NoEnd { limit }),
                Some((_, Heard::End)) => break,
                Some((_, Heard::Said(Message::Panic { why }))) => return Err(self.panic(why)),
                Some((_, Heard::Said(Message::Failed { why }))) => {
                    return Err(Cause::Failed { why });
                }
                Some(_) => {}
            }
        }
        // Before it is waited for: then its numbers are gone.
        let times = proc_files::process_times(self.process.id());
        match self.process.wait(limit) {
            None => Err(Cause::NoEnd { limit }),
            Some(status) if status.code() == Some(exit_status(EXIT_WELL)) => Ok(times),
            Some(status) => Err(of_status(status)),
        }
    }

    /// Ends QEMU and makes an error of `cause` that says where the log is.
    pub(crate) fn fail(mut self, cause: Cause) -> RunError {
        self.process.kill();
        RunError {
            cause,
            stderr: self.process.complaints(),
            log: self.serial.keep_log(&self.machine.guest, self.name),
        }
    }

    /// The error of a run that failed; QEMU is ended either way.
    pub(crate) fn conclude<T>(self, result: Result<T, Cause>) -> Result<T, RunError> {
        result.map_err(|cause| self.fail(cause))
    }

    /// Why the port is closed.
    fn ended(&mut self) -> Cause {
        let limit = self.limits().end;
        match self.process.wait(limit) {
            Some(status) => of_status(status),
            None => Cause::NoEnd { limit },
        }
    }

    /// A panic, with what the kernel says after it.
    fn panic(&mut self, why: String) -> Cause {
        self.drain();
        let lines = lines_of_panic(self.heard.iter().map(|(_, heard)| heard));
        Cause::Panic { why, lines }
    }

    /// A damaged message: often a panic came in the middle of it, which is then what matters.
    fn damaged(&mut self, line: String, why: String) -> Cause {
        match self.last_words() {
            Some(cause) => cause,
            None => Cause::Damaged { line, why },
        }
    }

    /// Why the control socket failed: mostly because the guest did.
    fn of_qmp(&mut self, error: QmpError) -> Cause {
        if !matches!(error, QmpError::Gone) {
            return Cause::Qmp(error);
        }
        let ended = self.process.wait(LAST_WORDS);
        match (self.last_words(), ended) {
            (Some(cause), _) => cause,
            (None, Some(status)) => of_status(status),
            (None, None) => Cause::Qmp(error),
        }
    }

    /// What the guest says of its own end, if anything. Everything is still to be heard after this.
    fn last_words(&mut self) -> Option<Cause> {
        self.drain();
        let mut all = self.heard.iter().map(|(_, heard)| heard);
        while let Some(heard) = all.next() {
            match heard {
                Heard::Said(Message::Panic { why }) => {
                    return Some(Cause::Panic {
                        why: why.clone(),
                        lines: lines_of_panic(all),
                    });
                }
                Heard::Said(Message::Failed { why }) => {
                    return Some(Cause::Failed { why: why.clone() });
                }
                _ => {}
            }
        }
        None
    }

    /// Whether a message of the guest's is still to be heard.
    fn has_spoken(&mut self) -> bool {
        self.drain();
        let said = |(_, heard): &(Instant, Heard)| matches!(heard, Heard::Said(_));
        self.heard.iter().any(said)
    }

    /// Listens to the end of the port, or for a moment.
    fn drain(&mut self) {
        let until = Instant::now() + LAST_WORDS;
        while !matches!(self.heard.back(), Some((_, Heard::End))) {
            match self.serial.next(until) {
                Some(heard) => self.heard.push_back(heard),
                None => break,
            }
        }
    }
}
