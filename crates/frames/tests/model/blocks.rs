//! Blocks that are isolated, captured and split, and frames that change their state.

use dirigible_frames::{
    BlockId, BlockState, FRAMES_PER_BLOCK, FrameClass, FrameState, IsolateError, Ledger, Order, Pfn,
};

use crate::model::{Before, Held, Model};

impl Model<'_> {
    pub fn isolate(&mut self, before: &Before, block: BlockId) {
        let expected = match before.ledgers[block.index()].state() {
            BlockState::Open | BlockState::Spare => None,
            BlockState::Isolated => Some(IsolateError::Isolated),
            BlockState::Huge => Some(IsolateError::Huge),
        };
        match self.frames.isolate_block(block) {
            Ok(token) => {
                assert_eq!(expected, None);
                assert_eq!(token.block(), block);
                self.tokens.push(token);
            }
            Err(error) => assert_eq!(Some(error), expected),
        }
    }

    pub fn capture(&mut self, before: &Before, pick: usize, class: FrameClass) {
        let Some(token) = self.token(pick) else {
            return;
        };
        let block = token.block();
        let free = before.ledgers[block.index()].free() as usize == FRAMES_PER_BLOCK;
        match self.frames.capture_block(token, class) {
            Ok(pfn) => {
                assert!(free);
                assert_eq!(pfn, self.frames.block_start(block));
                // It comes out of an isolated block, and only this way.
                let mut before = self.before();
                before.ledgers[block.index()] = Ledger::new();
                self.take_one(&before, pfn, Order::HUGE, class);
            }
            Err(token) => {
                assert!(!free);
                self.tokens.push(token);
            }
        }
    }

    pub fn split(&mut self, pick: usize) {
        let huge: Vec<Pfn> = self
            .held
            .iter()
            .filter(|(_, held)| held.order == Order::HUGE)
            .filter(|(_, held)| matches!(held.state, FrameState::Allocated | FrameState::Isolated))
            .map(|(pfn, _)| *pfn)
            .collect();
        let Some(position) = pick.checked_rem(huge.len()) else {
            return;
        };
        let head = huge[position];
        self.frames.split_huge(head);
        let parts = Held {
            order: Order::BASE,
            ..self.held[&head]
        };
        for offset in 0..FRAMES_PER_BLOCK as u64 {
            self.held.insert(head.plus(offset), parts);
        }
    }

    pub fn transition(&mut self, pick: usize, to: FrameState) {
        let Some((pfn, held)) = self.pick(pick) else {
            return;
        };
        if !held.state.may_become(to) {
            return;
        }
        // From another state than the one it is in: refused.
        if held.state != FrameState::Leaving {
            let wrong = self
                .frames
                .transition(pfn, FrameState::Leaving, FrameState::Allocated);
            assert_eq!(wrong, Err(held.state));
        }
        assert_eq!(self.frames.transition(pfn, held.state, to), Ok(()));
        self.held.insert(pfn, Held { state: to, ..held });
    }
}
