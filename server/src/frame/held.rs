//! What many hold together, in bytes: each notes its own share, and takes it out of the sum when it goes. So the sum is
//! known without a walk over those who hold it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// A sum of shares.
#[derive(Clone, Debug, Default)]
pub struct Held(Arc<AtomicUsize>);

impl Held {
    /// All shares together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Another share, of nothing yet.
    #[must_use]
    pub fn share(&self) -> Share {
        Share {
            of: self.clone(),
            bytes: 0,
        }
    }
}

/// What one holds of a sum.
#[derive(Debug)]
pub struct Share {
    of: Held,
    bytes: usize,
}

impl Share {
    /// It is so much now.
    pub fn set(&mut self, bytes: usize) {
        let sum = &self.of.0;
        if bytes > self.bytes {
            sum.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            sum.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// It is so much more.
    pub fn add(&mut self, bytes: usize) {
        self.set(self.bytes + bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_leaves_the_sum_with_its_holder() {
        let held = Held::default();
        let (mut first, mut second) = (held.share(), held.share());
        first.set(10);
        second.add(5);
        second.add(1);
        assert_eq!(held.bytes(), 16);
        first.set(3);
        assert_eq!(held.bytes(), 9);
        drop(second);
        assert_eq!(held.bytes(), 3);
        drop(first);
        assert_eq!(held.bytes(), 0);
    }
}
