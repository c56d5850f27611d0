//! `zfnet explore`: a page in the browser on which a network's features are looked at while it runs.
//!
//! ```text
//! browser   page/      draws, asks for what is missing (docs of the addresses: server.rs)
//!    |
//! server.rs            threads of its own: HTTP, who may ask (guard.rs), images (pictures.rs), how far a run is
//!    |                 (checkpoint.rs), views for its report (views.rs)
//!    |  Job
//! engine.rs            the caller's thread: the networks. One job at a time; what nobody waits for any more is not
//!                      computed. Between jobs it goes on with what takes long, a little at a time: the search for
//!                      the strongest images (strongest.rs), what matters to a class (by_class.rs), preferred images
//! ```
//!
//! publish.rs asks the same server for what a page without one is given.

mod address;
mod by_class;
mod checkpoint;
mod engine;
mod guard;
mod pictures;
mod publish;
mod server;
mod strongest;
mod views;

pub use checkpoint::Checkpoint;
pub use engine::{Engine, Job, Opened};
pub use guard::{Guard, random_name};
pub use pictures::Pictures;
pub use publish::{Published, Wanted, publish};
pub use server::{Listening, Settings, listen};
pub use views::NAME;

/// A list of a few things by their keys, of which those that have not been asked for lately are forgotten.
struct Recent<K, V> {
    most: usize,
    /// The last asked for first.
    kept: Vec<(K, V)>,
}

impl<K: PartialEq, V> Recent<K, V> {
    fn new(most: usize) -> Self {
        Recent { most, kept: Vec::new() }
    }

    fn get(&mut self, key: &K) -> Option<&mut V> {
        let place = self.kept.iter().position(|(kept, _)| kept == key)?;
        self.kept[..=place].rotate_right(1);
        Some(&mut self.kept[0].1)
    }

    fn put(&mut self, key: K, value: V) -> &mut V {
        self.kept.retain(|(kept, _)| *kept != key);
        self.kept.truncate(self.most - 1);
        self.kept.insert(0, (key, value));
        &mut self.kept[0].1
    }
}

#[cfg(test)]
mod tests {
    use super::Recent;

    #[test]
    fn what_was_asked_for_last_is_kept() {
        let mut recent = Recent::new(2);
        recent.put("a", 1);
        recent.put("b", 2);
        assert_eq!(recent.get(&"a"), Some(&mut 1));
        recent.put("c", 3);
        assert_eq!([recent.get(&"a").copied(), recent.get(&"b").copied()], [Some(1), None]);
        assert_eq!(recent.get(&"c"), Some(&mut 3));
        recent.put("a", 4);
        assert_eq!((recent.kept.len(), recent.get(&"a")), (2, Some(&mut 4)));
    }
}
