//! Connections by number: segments that never move, so that ten thousand joins copy nothing, and numbers with a
//! generation, so that a late event or answer never meets the wrong connection.

const SEGMENT: usize = 1024;

/// A slot's number (low half) and generation (high half).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    const fn new(index: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | index as u64)
    }
    /// The slot.
    #[must_use]
    pub const fn index(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }
    /// As one number, for epoll and for answers.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
    /// From that number.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A segmented slab.
pub struct Slab<T> {
    segments: Vec<Box<[Slot<T>]>>,
    free: Vec<u32>,
    used: u32,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            segments: Vec::new(),
            free: Vec::new(),
            used: 0,
            len: 0,
        }
    }
}

impl<T> Slab<T> {
    /// Takes a value in.
    pub fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| self.fresh());
        self.len += 1;
        let slot = self.slot_mut(index);
        slot.value = Some(value);
        Key::new(index, slot.generation)
    }

    fn fresh(&mut self) -> u32 {
        let index = self.used;
        if index as usize / SEGMENT == self.segments.len() {
            self.segments.push(
                (0..SEGMENT)
                    .map(|_| Slot {
                        generation: 1,
                        value: None,
                    })
                    .collect(),
            );
        }
        self.used += 1;
        index
    }

    fn slot_mut(&mut self, index: u32) -> &mut Slot<T> {
        &mut self.segments[index as usize / SEGMENT][index as usize % SEGMENT]
    }

    /// The value with this number, whatever its generation: for indexes that are kept in step with the slab.
    pub fn at(&mut self, index: u32) -> Option<&mut T> {
        self.segments.get_mut(index as usize / SEGMENT)?[index as usize % SEGMENT]
            .value
            .as_mut()
    }

    /// The value with this key, if it is still there.
    pub fn get(&mut self, key: Key) -> Option<&mut T> {
        let slot = self
            .segments
            .get_mut(key.index() as usize / SEGMENT)?
            .get_mut(key.index() as usize % SEGMENT)?;
        if Key::new(key.index(), slot.generation) == key {
            slot.value.as_mut()
        } else {
            None
        }
    }

    /// The value with this key, to look at.
    #[must_use]
    pub fn peek(&self, key: Key) -> Option<&T> {
        let slot = self
            .segments
            .get(key.index() as usize / SEGMENT)?
            .get(key.index() as usize % SEGMENT)?;
        if Key::new(key.index(), slot.generation) == key {
            slot.value.as_ref()
        } else {
            None
        }
    }

    /// The key of the value with this number.
    pub fn key(&mut self, index: u32) -> Key {
        let generation = self.slot_mut(index).generation;
        Key::new(index, generation)
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let slot = self.slot_mut(key.index());
        // 31 bits: the highest marks what is no connection.
        slot.generation = (slot.generation + 1) & 0x7fff_ffff;
        let value = slot.value.take();
        self.free.push(key.index());
        self.len -= 1;
        value
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The keys of those for which `is` says so, among the values of each `of`-th segment from number `part` on: parts 0 to
    /// `of` - 1 together are all values.
    pub fn part<'a>(
        &'a self,
        part: usize,
        of: usize,
        is: impl Fn(&T) -> bool + 'a,
    ) -> impl Iterator<Item = Key> + 'a {
        let segments = self.segments.iter().enumerate().skip(part).step_by(of);
        let slots = segments.flat_map(|(number, segment)| {
            let first = u32::try_from(number * SEGMENT).unwrap_or(u32::MAX);
            segment.iter().zip(first..)
        });
        slots.filter_map(move |(slot, index)| {
            let value = slot.value.as_ref()?;
            is(value).then(|| Key::new(index, slot.generation))
        })
    }

    /// The keys of each `of`-th value from number `part` on: parts 0 to `of` - 1 together are all values.
    pub fn every(&self, part: usize, of: usize) -> impl Iterator<Item = Key> + '_ {
        let numbers = (part..self.used as usize).step_by(of);
        numbers.filter_map(|number| {
            let slot = &self.segments[number / SEGMENT][number % SEGMENT];
            let index = u32::try_from(number).ok()?;
            slot.value
                .is_some()
                .then(|| Key::new(index, slot.generation))
        })
    }

    /// The keys of all values.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        let slots = self.segments.iter().flatten().zip(0u32..);
        slots
            .filter(|(slot, _)| slot.value.is_some())
            .map(|(slot, index)| Key::new(index, slot.generation))
    }
}

/// Few things by number, without generations: whoever holds a number knows that the thing lives.
pub struct Places<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Places<T> {
    /// Takes a value in.
    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(at) = self.free.pop() {
            self.places[at as usize] = Some(value);
            return at;
        }
        self.places.push(Some(value));
        u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
    }
    /// The value with this number.
    #[must_use]
    pub fn get(&self, at: u32) -> Option<&T> {
        self.places.get(at as usize)?.as_ref()
    }
    /// The value with this number.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.places.get_mut(at as usize)?.as_mut()
    }
    /// Takes a value out.
    pub fn take(&mut self, at: u32) -> Option<T> {
        let value = self.places.get_mut(at as usize)?.take()?;
        self.free.push(at);
        Some(value)
    }
    /// All values and their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..)
            .zip(&self.places)
            .filter_map(|(at, place)| Some((at, place.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_together_are_all() {
        let mut slab = Slab::default();
        let mut all: Vec<Key> = (0..5000).map(|n| slab.insert(n)).collect();
        for gone in [4999, 2048, 0] {
            slab.remove(all.remove(gone));
        }
        for of in [1, 2, 4, 7, 6000] {
            let mut parts: Vec<Key> = (0..of)
                .flat_map(|part| slab.part(part, of, |_| true))
                .collect();
            parts.sort_unstable();
            assert_eq!(parts, all, "segments by {of}");
            let mut parts: Vec<Key> = (0..of).flat_map(|part| slab.every(part, of)).collect();
            parts.sort_unstable();
            assert_eq!(parts, all, "values by {of}");
        }
        let few: Vec<Key> = slab.part(0, 1, |&n| n == 7).collect();
        assert_eq!(few, [all[6]]);
    }

    #[test]
    fn a_late_key_finds_nobody() {
        let mut slab = Slab::default();
        let keys: Vec<Key> = (0..3000).map(|n| slab.insert(n)).collect();
        assert_eq!(slab.get(keys[2500]), Some(&mut 2500));
        assert_eq!(slab.remove(keys[7]), Some(7));
        let again = slab.insert(70);
        assert_eq!(again.index(), keys[7].index());
        assert_eq!((slab.peek(keys[7]), slab.peek(again)), (None, Some(&70)));
        assert_eq!((slab.len(), slab.keys().count()), (3000, 3000));
        assert_eq!(slab.remove(keys[7]), None);
        assert_eq!(slab.get(Key::from_number(u64::MAX)), None);
    }
}
