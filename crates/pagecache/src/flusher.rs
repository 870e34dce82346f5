//! Writing in the background.

use dirigible_frames::FrameContents;
use dirigible_frames::sync::Ordering;
use dirigible_reclaim::Kind;

use crate::cache::PageCache;
use crate::writing::Begun;

/// Runs that one step begins at most.
const RUNS: usize = 32;

/// Writes dirty pages in the background, a bounded piece at a time: in the disk's order while too many are dirty, or
/// when reclaim asks for it; what is in swap, always; and what has been dirty for long. A cache has one.
pub struct Flusher<'c, 'a, P> {
    cache: &'c PageCache<'a, P>,
    /// When it looks for what is old.
    next_look: u64,
    /// When what is dirty then begins to age.
    next_tick: u64,
    /// What is in `aged` is due, from this block on.
    due: Option<u64>,
}

impl<'c, 'a, P: FrameContents> Flusher<'c, 'a, P> {
    /// The flusher of `cache`, which begins at `now`.
    pub fn new(cache: &'c PageCache<'a, P>, now: u64) -> Self {
        Self {
            cache,
            next_look: now.saturating_add(cache.config.period_ns),
            next_tick: now.saturating_add(cache.config.age_ns),
            due: None,
        }
    }

    /// Does one bounded piece of work at `now` and gives the time at which it wants to go on (nanoseconds on the
    /// platform's clock). Does not wait.
    pub fn step(&mut self, now: u64) -> u64 {
        let cache = self.cache;
        let config = &cache.config;
        cache.poll();
        cache.renew_limits();
        if now >= self.next_tick {
            self.tick(now);
        }
        let mut busy = false;
        if now >= self.next_look {
            if self.write_due(now) {
                self.next_look = now.saturating_add(config.period_ns);
            } else {
                busy = true;
            }
        }
        // Acquire: what the caller saw that wants it comes before. Reclaim asks for one turn, whatever is dirty.
        let wanted = cache.flusher_wanted.swap(false, Ordering::Acquire);
        let over = |limit: u64| cache.writable_pages(Kind::File) > limit;
        let limit = cache.background_limit.load(Ordering::Relaxed);
        if wanted || over(limit) {
            let room = cache.write_some(Kind::File, RUNS);
            busy |= !room || over(limit);
        }
        // Whatever is dirty in swap stands in reclaim's way.
        if cache.writable_pages(Kind::Anonymous) > 0 {
            cache.write_some(Kind::Anonymous, RUNS);
            busy |= cache.writable_pages(Kind::Anonymous) > 0;
        }
        let pause = if busy { config.busy_ns } else { config.look_ns };
        now.saturating_add(pause)
    }

    /// What was dirty at the last tick and still is, is due; when that is done, what is dirty now begins to age.
    fn tick(&mut self, now: u64) {
        let cache = self.cache;
        if self.due.is_some() {
            return;
        }
        if cache.aged.next(0, cache.block_count()).is_some() {
            self.due = Some(0);
            self.next_look = now;
        } else {
            self.age(now);
        }
    }

    fn age(&mut self, now: u64) {
        self.cache.try_swap_again();
        self.cache.aged.insert_all(&self.cache.unwritten);
        self.next_tick = now.saturating_add(self.cache.config.age_ns);
    }

    /// Writes what is due; gives whether all of it was begun.
    fn write_due(&mut self, now: u64) -> bool {
        let Some(mut at) = self.due else {
            return true;
        };
        let (cache, blocks) = (self.cache, self.cache.block_count());
        for _ in 0..RUNS {
            let Some(block) = cache.aged.next(at, blocks) else {
                self.due = None;
                self.age(now);
                return true;
            };
            match cache.begin_write_of(block) {
                Begun::NoRoom => {
                    self.due = Some(at);
                    return false;
                }
                _ => {
                    cache.aged.remove(block);
                }
            }
            at = block + 1;
        }
        self.due = Some(at);
        false
    }
}
