//! The table of programs.

use alloc::vec::Vec;

use dirigible_paging::SpaceId;

use crate::{
    calls::{Ended, Pid, PipeEnd},
    programs::Program,
};

/// All programs, each in a place that the next one takes when it has ended and its parent knows.
pub(super) struct Table {
    places: Vec<Option<Entry>>,
    next_pid: u32,
}

struct Entry {
    pid: Pid,
    /// Where the parent is, and its number; `None`: nobody waits for it.
    parent: Option<(usize, Pid)>,
    program: Program,
    pipe: Option<PipeEnd>,
    cpu: usize,
    state: State,
    space: Option<SpaceId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for its engine.
    Ready,
    Runs,
    Ended(Ended),
}

impl Table {
    pub fn new(places: usize) -> Self {
        Self {
            places: (0..places).map(|_| None).collect(),
            next_pid: 1,
        }
    }

    /// Adds a program; gives its place, its CPU and its number, or `None` if there is no place.
    pub fn add(
        &mut self,
        parent: Option<usize>,
        program: &Program,
        pipe: Option<PipeEnd>,
        cpus: usize,
    ) -> Option<(usize, usize, Pid)> {
        let place = self.places.iter().position(Option::is_none)?;
        let pid = Pid(self.next_pid);
        self.next_pid += 1;
        // The last CPU first: the first one has other duties.
        let cpu = cpus - 1 - pid.0 as usize % cpus;
        let parent = parent.and_then(|place| Some((place, self.places[place].as_ref()?.pid)));
        self.places[place] = Some(Entry {
            pid,
            parent,
            program: *program,
            pipe,
            cpu,
            state: State::Ready,
            space: None,
        });
        Some((place, cpu, pid))
    }

    /// The first program that waits for the engine of `cpu`; it runs from now on.
    pub fn take_ready(&mut self, cpu: usize) -> Option<usize> {
        let mut ready: Option<(usize, Pid)> = None;
        for (place, entry) in self.places.iter().enumerate() {
            let Some(entry) = entry else { continue };
            let earlier = ready.is_none_or(|(_, pid)| entry.pid.0 < pid.0);
            if entry.cpu == cpu && entry.state == State::Ready && earlier {
                ready = Some((place, entry.pid));
            }
        }
        let (place, _) = ready?;
        self.entry(place)?.state = State::Runs;
        Some(place)
    }

    /// What runs in `place`.
    pub fn program(&self, place: usize) -> (Program, Option<PipeEnd>) {
        match self.places.get(place).and_then(Option::as_ref) {
            Some(entry) => (entry.program, entry.pipe),
            None => unreachable!("a program runs in place {place}"),
        }
    }

    /// The address space of the program in `place`.
    pub fn set_space(&mut self, place: usize, space: Option<SpaceId>) {
        if let Some(entry) = self.entry(place) {
            entry.space = space;
        }
    }

    /// The address spaces of all programs.
    pub fn spaces(&self) -> impl Iterator<Item = (usize, SpaceId)> {
        let entries = self.places.iter().enumerate();
        entries.filter_map(|(place, entry)| Some((place, entry.as_ref()?.space?)))
    }

    /// The places of the programs that have begun and not ended.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        let entries = self.places.iter().enumerate();
        entries.filter_map(|(place, entry)| (entry.as_ref()?.state == State::Runs).then_some(place))
    }

    /// The program in `place` has ended. Its place is free when its parent has asked, or if there is none.
    pub fn end(&mut self, place: usize, ended: Ended) {
        let parent = self.entry(place).and_then(|entry| {
            entry.state = State::Ended(ended);
            entry.space = None;
            entry.parent
        });
        if parent.is_none_or(|(parent, pid)| !self.is(parent, pid)) {
            self.places[place] = None;
        }
        // Nobody asks for its children any more.
        for child in &mut self.places {
            let Some(entry) = child else { continue };
            if entry.parent.is_some_and(|(parent, _)| parent == place) {
                entry.parent = None;
                if matches!(entry.state, State::Ended(_)) {
                    *child = None;
                }
            }
        }
    }

    /// How the child `pid` of the program in `parent` has ended, which is forgotten then; `Ok(None)`: it has not.
    /// `Err`: there is no such child.
    pub fn ask(&mut self, parent: usize, pid: Pid) -> Result<Option<Ended>, ()> {
        let is_it = |entry: &Entry| {
            entry.pid == pid && entry.parent.is_some_and(|(place, _)| place == parent)
        };
        let mut places = self.places.iter_mut();
        let child = places
            .find(|entry| entry.as_ref().is_some_and(is_it))
            .ok_or(())?;
        match child.as_ref().map(|entry| entry.state) {
            Some(State::Ended(ended)) => {
                *child = None;
                Ok(Some(ended))
            }
            _ => Ok(None),
        }
    }

    /// The child of the program in `parent` that has ended and was begun first, which is forgotten then; `Ok(None)`: none
    /// has. `Err`: it has no child.
    pub fn ask_any(&mut self, parent: usize) -> Result<Option<(Pid, Ended)>, ()> {
        let mut ended: Option<Pid> = None;
        let mut children = 0;
        for entry in self.places.iter().flatten() {
            if entry.parent.is_none_or(|(place, _)| place != parent) {
                continue;
            }
            children += 1;
            let is_first = ended.is_none_or(|first| entry.pid.0 < first.0);
            if matches!(entry.state, State::Ended(_)) && is_first {
                ended = Some(entry.pid);
            }
        }
        match ended {
            _ if children == 0 => Err(()),
            Some(pid) => Ok(self.ask(parent, pid)?.map(|how| (pid, how))),
            None => Ok(None),
        }
    }

    /// How many programs have not ended.
    pub fn alive(&self) -> usize {
        let entries = self.places.iter().flatten();
        entries
            .filter(|entry| !matches!(entry.state, State::Ended(_)))
            .count()
    }

    fn is(&self, place: usize, pid: Pid) -> bool {
        let entry = self.places.get(place).and_then(Option::as_ref);
        entry.is_some_and(|entry| entry.pid == pid && !matches!(entry.state, State::Ended(_)))
    }

    fn entry(&mut self, place: usize) -> Option<&mut Entry> {
        self.places.get_mut(place).and_then(Option::as_mut)
    }
}
