//! What is kept by a channel's name, while names are invented and forgotten.

use std::{collections::HashMap, hash::Hash};

/// So many names are remembered in any case: forgetting some of them would gain nothing.
pub const KEPT: usize = 1024;

/// Gives room back once most of it is not used: a map by itself keeps the room that it once needed.
pub fn give_back<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    let used = map.len().max(KEPT);
    if map.capacity() > 8 * used {
        map.shrink_to(2 * used);
    }
}
