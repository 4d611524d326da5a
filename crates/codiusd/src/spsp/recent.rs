//! A bounded number of things, of which the one that nobody asks for has to go.

use std::collections::HashMap;

/// A bounded number of things by name. When there are too many, the one that was asked for least
/// recently has to go: those who take up places can keep them only as long as they keep asking faster
/// than an honest payer does.
pub(super) struct Recent<T> {
    most: usize,
    by_name: HashMap<String, (u64, T)>,
    /// Counts what was asked for.
    clock: u64,
}

impl<T> Recent<T> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            by_name: HashMap::new(),
            clock: 0,
        }
    }

    pub(super) fn get(&mut self, name: &str) -> Option<&T> {
        self.clock += 1;
        let (asked, it) = self.by_name.get_mut(name)?;
        *asked = self.clock;
        Some(it)
    }

    /// Puts something there, and gives back what has to go for it.
    pub(super) fn insert(&mut self, name: String, it: T) -> Option<T> {
        let is_full = self.by_name.len() >= self.most && !self.by_name.contains_key(&name);
        let oldest = is_full.then(|| {
            let (name, _) = self.by_name.iter().min_by_key(|(_, (asked, _))| *asked)?;
            let name = name.clone();
            self.by_name.remove(&name)
        });
        self.clock += 1;
        let replaced = self.by_name.insert(name, (self.clock, it));
        oldest.flatten().or(replaced).map(|(_, it)| it)
    }

    /// Takes something away, if it is what the name still stands for.
    pub(super) fn remove(&mut self, name: &str, is_it: impl FnOnce(&T) -> bool) {
        if self.by_name.get(name).is_some_and(|(_, it)| is_it(it)) {
            self.by_name.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_was_quiet_for_longest_has_to_go() {
        let mut recent = Recent::new(3);
        for (name, it) in [("a", 1), ("b", 2), ("c", 3)] {
            assert_eq!(recent.insert(name.to_owned(), it), None);
        }
        assert_eq!(recent.get("a"), Some(&1));
        assert_eq!(recent.insert("d".to_owned(), 4), Some(2));
        assert_eq!(recent.get("b"), None);
        assert_eq!(
            recent.insert("a".to_owned(), 5),
            Some(1),
            "replaced, and nobody else goes"
        );
        // What is gone and came back is not taken away by who held it before.
        recent.remove("a", |it| *it == 1);
        assert_eq!(recent.get("a"), Some(&5));
        recent.remove("a", |it| *it == 5);
        assert_eq!(recent.get("a"), None);
        assert_eq!(recent.insert("e".to_owned(), 6), None);
    }
}
