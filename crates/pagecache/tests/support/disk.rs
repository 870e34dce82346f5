// A disk whose answers the tests control. It remembers the first and the last word of each block.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;

use dirigible_disk::{
    BlockDevice, Completion, DiskError, DiskRequest, MAX_REQUEST_FRAMES, SubmitError,
};
use dirigible_frames::{FrameContents, Pfn};

use super::machine::Machine;

pub type Words = [u64; 2];

/// The first and the last word of a frame.
pub fn words_of(machine: &Machine, frame: Pfn) -> Words {
    [machine.read_word(frame, 0), machine.read_word(frame, 511)]
}

pub fn set_words(machine: &Machine, frame: Pfn, words: Words) {
    machine.write_word(frame, 0, words[0]);
    machine.write_word(frame, 511, words[1]);
}

/// What blocks hold that were never written.
pub fn factory(block: u64) -> Words {
    [block << 32, block << 32 | 1]
}

#[derive(Clone, Debug)]
pub struct Job {
    pub token: u32,
    pub write: bool,
    pub block: u64,
    pub frames: Vec<Pfn>,
    /// What a write carries, as it was when it was sent.
    sent: Vec<Words>,
}

#[derive(Default)]
pub struct State {
    pub contents: Vec<Words>,
    pub jobs: VecDeque<Job>,
    done: VecDeque<Completion>,
    /// Each look of the cache ends one request.
    pub auto: bool,
    pub bad_reads: BTreeSet<u64>,
    pub bad_writes: BTreeSet<u64>,
    /// Which of the next writes fail, whatever they write; those after them do not.
    pub write_faults: VecDeque<bool>,
    /// So many of the next reads are interrupted by a reset.
    pub interrupted_reads: usize,
    /// The same of writes.
    pub interrupted_writes: usize,
    pub dead: bool,
    /// Requests that were sent, with their blocks: (write, block, count).
    pub log: Vec<(bool, u64, usize)>,
}

pub struct MockDisk {
    machine: &'static Machine,
    depth: usize,
    blocks: u64,
    pub state: Mutex<State>,
}

impl MockDisk {
    pub fn new(machine: &'static Machine, blocks: u64, depth: usize) -> Self {
        let state = State {
            contents: (0..blocks).map(factory).collect(),
            auto: true,
            ..State::default()
        };
        Self {
            machine,
            depth,
            blocks,
            state: Mutex::new(state),
        }
    }

    /// Ends the oldest requests, up to `count` of them; gives how many.
    pub fn answer(&self, count: usize) -> usize {
        let mut state = self.state.lock().unwrap();
        (0..count)
            .take_while(|_| self.end(&mut state, None))
            .count()
    }

    /// Ends the oldest request with an error.
    pub fn fail(&self, error: DiskError) -> bool {
        self.end(&mut self.state.lock().unwrap(), Some(error))
    }

    fn end(&self, state: &mut State, error: Option<DiskError>) -> bool {
        let Some(job) = state.jobs.pop_front() else {
            return false;
        };
        let bad = if job.write {
            &state.bad_writes
        } else {
            &state.bad_reads
        };
        let blocks = job.block..job.block + job.frames.len() as u64;
        let mut result = error.map_or(Ok(()), Err);
        if blocks.clone().any(|block| bad.contains(&block)) {
            result = Err(DiskError::Io);
        }
        if !job.write && state.interrupted_reads > 0 {
            state.interrupted_reads -= 1;
            result = Err(DiskError::Interrupted);
        }
        if job.write && state.interrupted_writes > 0 {
            state.interrupted_writes -= 1;
            result = Err(DiskError::Interrupted);
        }
        if job.write && state.write_faults.pop_front() == Some(true) {
            result = Err(DiskError::Io);
        }
        for (at, (block, &frame)) in blocks.zip(&job.frames).enumerate() {
            let words = words_of(self.machine, frame);
            if job.write {
                assert_eq!(
                    words, job.sent[at],
                    "block {block} was changed while it is written"
                );
                if result.is_ok() {
                    state.contents[block as usize] = words;
                }
            } else if result.is_ok() {
                set_words(self.machine, frame, state.contents[block as usize]);
            }
        }
        state.done.push_back(Completion {
            token: job.token,
            result,
        });
        true
    }

    pub fn in_flight(&self) -> usize {
        self.state.lock().unwrap().jobs.len()
    }

    pub fn contents(&self, block: u64) -> Words {
        self.state.lock().unwrap().contents[block as usize]
    }

    pub fn set_auto(&self, auto: bool) {
        self.state.lock().unwrap().auto = auto;
    }

    pub fn log(&self) -> Vec<(bool, u64, usize)> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

impl BlockDevice for MockDisk {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&self, request: DiskRequest<'_>) -> Result<(), SubmitError> {
        let mut state = self.state.lock().unwrap();
        if state.dead {
            return Err(SubmitError::Dead);
        }
        let count = request.frames.len();
        if count == 0 || count > MAX_REQUEST_FRAMES || request.block + count as u64 > self.blocks {
            return Err(SubmitError::Invalid);
        }
        if state.jobs.len() == self.depth {
            return Err(SubmitError::Busy);
        }
        for job in &state.jobs {
            assert_ne!(job.token, request.token, "a token is used twice");
            let end = job.block + job.frames.len() as u64;
            let apart = request.block >= end || request.block + count as u64 <= job.block;
            assert!(apart, "two requests for one block: {job:?} {request:?}");
            assert!(
                !job.frames
                    .iter()
                    .any(|frame| request.frames.contains(frame))
            );
        }
        let sent = request.frames.iter();
        let job = Job {
            token: request.token,
            write: request.write,
            block: request.block,
            frames: request.frames.to_vec(),
            sent: sent.map(|&frame| words_of(self.machine, frame)).collect(),
        };
        state.log.push((job.write, job.block, count));
        state.jobs.push_back(job);
        Ok(())
    }

    fn completed(&self, out: &mut [Completion]) -> usize {
        let mut state = self.state.lock().unwrap();
        if state.auto && state.done.is_empty() {
            self.end(&mut state, None);
        }
        let count = out.len().min(state.done.len());
        for place in &mut out[..count] {
            *place = state.done.pop_front().unwrap();
        }
        count
    }
}
