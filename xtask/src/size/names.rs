//! Assigns functions to crates by their names in Rust's v0 mangling, which includes all type arguments.

/// The crates whose size is measured, from the lowest to the highest: each uses those before it.
pub const CRATES: [&str; 3] = ["frames", "mobility", "balloon"];

/// The prefix of the project's crates.
const PREFIX: &str = "dirigible_";

/// The parsed name of a function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// The index of its crate in [`CRATES`], if it is one of them.
    pub owner: Option<usize>,
    /// The name without type arguments.
    pub plain: String,
    /// The name with `_` for each number among the type arguments of the project's own items: functions with the same
    /// such name are instances of one function for several sizes.
    pub sizeless: String,
}

impl Name {
    /// Parses a demangled name.
    ///
    /// A function belongs to the highest crate that its name mentions: only that crate, or one above it, can
    /// instantiate a function with such types. Type arguments of the project's own items do not count: a driver for the
    /// kernel's platform is code of the driver.
    pub fn of(demangled: &str) -> Self {
        let mut reader = Reader::default();
        reader.read(demangled);
        let owner = reader.highest.filter(|&level| level < CRATES.len());
        let Reader {
            plain, sizeless, ..
        } = reader;
        Self {
            owner,
            plain,
            sizeless,
        }
    }
}

/// The level of a crate of the project; crates that are not in [`CRATES`] have the highest. `None` for any other crate.
fn level(root: &str) -> Option<usize> {
    let own = root.strip_prefix(PREFIX)?;
    let known = CRATES.iter().position(|&name| name == own);
    Some(known.unwrap_or(CRATES.len()))
}

/// The level of the crate that a path begins with.
type Root = Option<usize>;

/// What is known about an open angle bracket.
#[derive(Default)]
struct Brackets {
    /// `Some<T>` or `some::<T>`, not `<T as Trait>::some`.
    are_arguments: bool,
    /// Arguments of an item of the project, or nested in such.
    are_own: bool,
    /// The root of the path that is being parsed.
    path: Root,
    /// The root of the first path: for `<T as Trait>`, that of `T`.
    first: Option<Root>,
}

impl Brackets {
    fn begin_path(&mut self, root: Root) {
        self.path = root;
        self.first.get_or_insert(root);
    }
}

#[derive(Default)]
struct Reader {
    outermost: Brackets,
    open: Vec<Brackets>,
    highest: Root,
    plain: String,
    sizeless: String,
}

impl Reader {
    fn read(&mut self, name: &str) {
        let mut rest = name;
        while let Some(next) = rest.chars().next() {
            let before = self.sizeless.chars().next_back();
            let word = rest.len() - rest.trim_start_matches(is_of_word).len();
            let length = if word > 0 { word } else { next.len_utf8() };
            let (token, after) = rest.split_at(length);
            rest = after;
            match token {
                "<" => self.open(before),
                ">" if before != Some('-') => self.close(),
                _ if word > 0 => self.word(token, after.starts_with("::")),
                _ => self.write(token, token),
            }
        }
    }

    fn inner(&mut self) -> &mut Brackets {
        self.open.last_mut().unwrap_or(&mut self.outermost)
    }

    fn write(&mut self, plain: &str, sizeless: &str) {
        if !self.open.iter().any(|brackets| brackets.are_arguments) {
            self.plain += plain;
        }
        self.sizeless += sizeless;
    }

    fn word(&mut self, word: &str, is_path: bool) {
        let begins = !self.sizeless.ends_with([':', '#']);
        let are_own = self.inner().are_own;
        if begins && is_path {
            let root = level(word);
            self.inner().begin_path(root);
            if !are_own {
                self.highest = self.highest.max(root);
            }
        }
        let is_number = begins && word.bytes().all(|byte| byte.is_ascii_digit());
        let sizeless = if are_own && is_number { "_" } else { word };
        self.write(word, sizeless);
    }

    fn open(&mut self, before: Option<char>) {
        let are_arguments =
            before.is_some_and(|before| is_of_word(before) || before == ':' || before == '}');
        let outer = self.inner();
        let are_own = outer.are_own || are_arguments && outer.path.is_some();
        self.write(if are_arguments { "" } else { "<" }, "<");
        if are_arguments && self.plain.ends_with("::") {
            self.plain.truncate(self.plain.len() - 2);
        }
        self.open.push(Brackets {
            are_arguments,
            are_own,
            ..Brackets::default()
        });
    }

    fn close(&mut self) {
        let closed = self.open.pop().unwrap_or_default();
        self.write(if closed.are_arguments { "" } else { ">" }, ">");
        if !closed.are_arguments {
            // The path after `<T as Trait>` lies within `T`.
            self.inner().begin_path(closed.first.flatten());
        }
    }
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Option<&'static str> {
        Name::of(name).owner.map(|at| CRATES[at])
    }

    #[test]
    fn functions_are_of_the_crate_that_they_are_in() {
        assert_eq!(owner("dirigible_frames::bits::take_run"), Some("frames"));
        assert_eq!(
            owner("<dirigible_frames::allocator::FrameAllocator>::alloc"),
            Some("frames")
        );
        assert_eq!(
            owner("<dirigible_balloon::config::Step as core::fmt::Debug>::fmt"),
            Some("balloon")
        );
        assert_eq!(
            owner("<dirigible_frames::allocator::FrameAllocator>::alloc::{closure#0}::{closure#1}"),
            Some("frames")
        );
        assert_eq!(owner("dirigible_guest::kernel::experiment::run"), None);
        assert_eq!(owner("core::fmt::write"), None);
        assert_eq!(owner("kernel_main"), None);
    }

    #[test]
    fn arguments_of_our_own_types_and_functions_do_not_count() {
        assert_eq!(
            owner("<dirigible_mobility::mobility::Mobility<dirigible_guest::Machine>>::evacuate"),
            Some("mobility")
        );
        let taken = "<dirigible_frames::allocator::FrameAllocator>::isolate_blocks::<<dirigible_mobility::\
                     mobility::Mobility<dirigible_guest::Machine>>::begin_blocks::{closure#1}>";
        assert_eq!(owner(taken), Some("frames"));
        assert_eq!(
            owner("dirigible_frames::take::run::<dirigible_guest::Machine>::{closure#0}"),
            Some("frames")
        );
        assert_eq!(
            owner("dirigible_guest::run::<dirigible_frames::allocator::FrameAllocator>"),
            None
        );
    }

    #[test]
    fn generics_of_others_are_of_the_highest_crate_that_they_name() {
        assert_eq!(
            owner(
                "core::ptr::drop_in_place::<dirigible_balloon::virtio::VirtioBalloon<dirigible_guest::Hal, 256>>"
            ),
            Some("balloon")
        );
        assert_eq!(
            owner(
                "<arrayvec::ArrayVec<dirigible_frames::ZoneId, 4>>::retain::<<dirigible_mobility::Mobility<\
                 dirigible_guest::Machine>>::compact_background::{closure#0}>"
            ),
            Some("mobility")
        );
        assert_eq!(
            owner(
                "<alloc::vec::Vec<dirigible_frames::Pfn> as core::Extend<dirigible_workload::Load>>::extend"
            ),
            None
        );
        assert_eq!(
            owner("core::slice::sort::quicksort::<(u32, dirigible_frames::BlockId), fn(u8) -> u8>"),
            Some("frames")
        );
        assert_eq!(
            owner("<virtio_drivers::VirtQueue<dirigible_guest::Hal, 32>>::add"),
            None
        );
    }

    #[test]
    fn implementations_are_of_the_higher_of_type_and_trait() {
        assert_eq!(
            owner(
                "<dirigible_balloon::VirtioBalloon<dirigible_guest::Hal, 256> as dirigible_mobility::MovableOwner>::poll"
            ),
            Some("balloon")
        );
        assert_eq!(
            owner(
                "<dirigible_balloon::VirtioBalloon<dirigible_guest::Hal, 256> as dirigible_workload::Driver>::stats"
            ),
            None
        );
        assert_eq!(
            owner("<dirigible_guest::Machine as dirigible_frames::platform::Platform>::cpu"),
            None
        );
        assert_eq!(
            owner(
                "<&mut <dirigible_frames::Index>::moved::{closure#1} as core::ops::FnMut<(u32,)>>::call_mut"
            ),
            Some("frames")
        );
    }

    #[test]
    fn plain_names_have_no_arguments() {
        let plain = |name: &str| Name::of(name).plain;
        assert_eq!(
            plain(
                "<dirigible_mobility::Mobility<dirigible_guest::Machine>>::with::<fn(u8) -> u8>::{closure#0}"
            ),
            "<dirigible_mobility::Mobility>::with::{closure#0}"
        );
        assert_eq!(
            plain(
                "<arrayvec::ArrayVec<u32, 4> as core::iter::FromIterator<u32>>::from_iter::<core::Range<u32>>"
            ),
            "<arrayvec::ArrayVec as core::iter::FromIterator>::from_iter"
        );
        assert_eq!(plain("core::fmt::write"), "core::fmt::write");
    }

    #[test]
    fn sizes_of_our_own_types_are_left_out() {
        let sizeless = |name: &str| Name::of(name).sizeless;
        let of = |size: &str| {
            format!(
                "<dirigible_balloon::List>::walk::<<dirigible_balloon::Balloon<[u8; 3], {size}>>::verify::{{closure#0}}>"
            )
        };
        assert_eq!(sizeless(&of("256")), sizeless(&of("4096")));
        let of = |closure: &str| {
            format!("dirigible_frames::with::<dirigible_mobility::run::{{closure#{closure}}}>")
        };
        assert_ne!(sizeless(&of("0")), sizeless(&of("1")));
        let of =
            |size: &str| format!("<arrayvec::ArrayVec<dirigible_frames::BlockId, {size}>>::push");
        assert_ne!(sizeless(&of("8")), sizeless(&of("64")));
    }
}
