//! Pipes: rings of unmovable frames between two programs.

use alloc::vec::Vec;

use dirigible_frames::{AllocRequest, Order, PageTables, Pfn};
use dirigible_paging::PageSource;
use spin::Mutex;

use crate::{
    calls::{Failure, PipeEnd},
    content::{Pattern, When},
    operator::Check,
    system::System,
};

/// Pages that a pipe holds.
const PAGES: u64 = 16;
/// Most pipes at a time.
const MAX_PIPES: usize = 64;
/// Key of pipes in their patterns, beside that of the writer.
const KEY: u64 = 0x7069_7065_0000_0000;

/// All pipes.
#[derive(Default)]
pub(super) struct Pipes(Mutex<Vec<Option<Pipe>>>);

#[derive(Default)]
struct Pipe {
    frames: [Pfn; PAGES as usize],
    /// Pages written and read since the pipe was made.
    written: u64,
    read: u64,
    reader: bool,
    writer: bool,
}

/// What a look into a pipe found.
pub(super) enum Look {
    /// So many pages can be written or read.
    Some(u64),
    /// None at the moment.
    Wait,
    /// The other end is closed.
    Closed,
}

impl Pipes {
    /// A new pipe: its reading and its writing end.
    pub fn make(&self) -> Result<(PipeEnd, PipeEnd), Failure> {
        let mut pipes = self.0.lock();
        let place = match pipes.iter().position(Option::is_none) {
            Some(place) => place,
            None if pipes.len() < MAX_PIPES => {
                pipes.push(None);
                pipes.len() - 1
            }
            None => return Err(Failure::TooMany),
        };
        pipes[place] = Some(Pipe {
            reader: true,
            writer: true,
            ..Pipe::default()
        });
        Ok((PipeEnd(2 * place as u32), PipeEnd(2 * place as u32 + 1)))
    }

    /// Whether the writing end can write.
    pub fn room(&self, end: PipeEnd) -> Result<Look, Failure> {
        self.with(end, true, |pipe| match pipe {
            Pipe { reader: false, .. } => Look::Closed,
            _ if pipe.written - pipe.read < PAGES => Look::Some(PAGES - (pipe.written - pipe.read)),
            _ => Look::Wait,
        })
    }

    /// Whether the reading end can read.
    pub fn filled(&self, end: PipeEnd) -> Result<Look, Failure> {
        self.with(end, false, |pipe| match pipe.written - pipe.read {
            0 if !pipe.writer => Look::Closed,
            0 => Look::Wait,
            pages => Look::Some(pages),
        })
    }

    /// Writes one page. There is room: the end has one user.
    pub fn write<P: PageTables>(
        &self,
        system: &System<'_, P>,
        end: PipeEnd,
        key: u64,
    ) -> Result<(), Failure> {
        let parts = system.parts();
        let frame = parts
            .memory
            .alloc(AllocRequest::unmovable())
            .map_err(|_| Failure::NoMemory)?;
        let number = self
            .with(end, true, |pipe| pipe.written)
            .unwrap_or_default();
        Pattern::new(KEY ^ key, number).write(parts.platform, frame);
        let stored = self.with(end, true, |pipe| {
            if pipe.reader {
                pipe.frames[(pipe.written % PAGES) as usize] = frame;
                pipe.written += 1;
            }
            pipe.reader
        });
        match stored {
            Ok(true) => Ok(()),
            _ => {
                parts.memory.free(frame, Order::BASE);
                Err(Failure::Pipe)
            }
        }
    }

    /// Reads and compares one page, which is there.
    pub fn read<P: PageTables>(
        &self,
        system: &System<'_, P>,
        end: PipeEnd,
        key: u64,
    ) -> Result<(), Failure> {
        let (frame, number) = self.with(end, false, |pipe| {
            (pipe.frames[(pipe.read % PAGES) as usize], pipe.read)
        })?;
        let pattern = Pattern::new(KEY ^ key, number);
        system.check_frame(frame, pattern, Check::Whole, (When::Used, "pipe", number));
        self.with(end, false, |pipe| pipe.read += 1)?;
        system.parts().memory.free(frame, Order::BASE);
        Ok(())
    }

    /// Closes an end. What nobody can read any more is freed.
    pub fn close<P: PageTables>(&self, system: &System<'_, P>, end: PipeEnd) {
        let (place, writes) = (end.0 as usize / 2, end.0 % 2 == 1);
        let mut left = [Pfn::default(); PAGES as usize];
        let mut count = 0;
        {
            let mut pipes = self.0.lock();
            let Some(slot) = pipes.get_mut(place) else {
                return;
            };
            let Some(pipe) = slot else { return };
            match writes {
                true => pipe.writer = false,
                false => pipe.reader = false,
            }
            if !pipe.reader {
                while pipe.read < pipe.written {
                    left[count] = pipe.frames[(pipe.read % PAGES) as usize];
                    count += 1;
                    pipe.read += 1;
                }
            }
            if !pipe.reader && !pipe.writer {
                *slot = None;
            }
        }
        for &frame in &left[..count] {
            system.parts().memory.free(frame, Order::BASE);
        }
    }

    fn with<R>(
        &self,
        end: PipeEnd,
        writes: bool,
        with: impl FnOnce(&mut Pipe) -> R,
    ) -> Result<R, Failure> {
        let mut pipes = self.0.lock();
        let is_writer = end.0 % 2 == 1;
        let pipe = pipes.get_mut(end.0 as usize / 2).and_then(Option::as_mut);
        let open = |pipe: &&mut Pipe| if is_writer { pipe.writer } else { pipe.reader };
        let pipe = pipe.filter(|_| is_writer == writes).filter(open);
        pipe.map(with).ok_or(Failure::Pipe)
    }
}
