//! Whatever comes, goes and is given meanwhile: each member is given the line in order, without a hole and nothing twice.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const WIRES: [Wire; 3] = [Wire::WebSocket, Wire::Sse, Wire::SsePlain];

/// What can happen between two turns.
#[derive(Clone, Debug)]
enum Event {
    /// Somebody comes, in one of the wire formats.
    Enter(usize),
    /// Somebody goes.
    Leave(usize),
    /// So many more wait.
    More(u64),
    /// A turn with so much budget, in which a member is given at most so many.
    Turn(usize, u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..WIRES.len()).prop_map(Event::Enter),
        2 => any::<prop::sample::Index>().prop_map(|at| Event::Leave(at.index(1000))),
        2 => (1..5u64).prop_map(Event::More),
        6 => (1..20usize, 1..9u64).prop_map(|(budget, most)| Event::Turn(budget, most)),
    ]
}

/// A lane and who is in it, with what each has been given.
#[derive(Default)]
struct Model {
    members: Members,
    sweep: Option<Sweep>,
    end: u64,
    given: HashMap<u32, u64>,
    places: HashMap<u32, (Wire, u32)>,
    number: u32,
}

impl Model {
    fn enter(&mut self, wire: Wire) {
        self.number += 1;
        let place = self.members.push(wire, self.number);
        if let Some(sweep) = &mut self.sweep {
            sweep.entered(&self.members, wire);
        }
        let given = self.sweep.as_ref();
        let given = given.map_or(self.end, |sweep| sweep.given_at(wire, place));
        self.places.insert(self.number, (wire, place));
        self.given.insert(self.number, given);
    }

    fn leave(&mut self, at: usize) {
        let mut known: Vec<u32> = self.places.keys().copied().collect();
        known.sort_unstable();
        let Some(member) = known.get(at % known.len().max(1)) else {
            return;
        };
        let (wire, place) = self.places.remove(member).unwrap();
        self.given.remove(member);
        if self.sweep.is_some() {
            self.members.vacate(wire, place);
        } else if let Some((moved, place)) = self.members.remove(wire, place) {
            self.places.get_mut(&moved).unwrap().1 = place;
        }
    }

    /// Gives each member in turn at most `most` of what waits for it.
    fn turn(&mut self, mut budget: usize, most: u64) {
        while budget > 0 {
            let sweep = self.sweep.as_mut().unwrap();
            let Some(from) = sweep.oldest().filter(|&from| from < self.end) else {
                return self.end();
            };
            // As a real slice does, it ends no earlier than that of those before.
            let upto = self.end.min(from + most).max(sweep.newest());
            let (places, mut turn) = (&mut self.places, Vec::new());
            let wire = sweep.visit(&mut self.members, budget, &mut turn, |member, place| {
                places.get_mut(&member).unwrap().1 = place;
            });
            budget -= turn.len();
            for member in turn {
                assert_eq!(Some(self.places[&member].0), wire);
                assert_eq!(self.given.insert(member, upto), Some(from), "{member}");
            }
            sweep.settle(&mut self.members, upto);
        }
    }

    fn end(&mut self) {
        self.sweep = None;
        let places = &mut self.places;
        self.members
            .close_holes(|member, place| places.get_mut(&member).unwrap().1 = place);
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Enter(wire) => self.enter(WIRES[wire]),
            Event::Leave(at) => self.leave(at),
            Event::More(count) => {
                if self.sweep.is_none() {
                    self.sweep = Some(Sweep::new(&self.members, self.end));
                }
                self.end += count;
            }
            Event::Turn(budget, most) if self.sweep.is_some() => self.turn(budget, most),
            Event::Turn(..) => {}
        }
    }

    fn check(&self) {
        assert_eq!(self.members.len(), self.places.len());
        for (member, &(wire, place)) in &self.places {
            let there = self.members.by_wire[wire.index()][place as usize];
            assert_eq!(there, *member, "at {wire:?} {place}");
            let given = self.sweep.as_ref();
            let given = given.map_or(self.end, |sweep| sweep.given_at(wire, place));
            assert_eq!(given, self.given[member], "{member} at {wire:?} {place}");
        }
        if let Some(sweep) = &self.sweep {
            assert!(sweep.runs.iter().is_sorted_by_key(|run| run.given));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn each_member_is_given_the_line_in_order(events in prop::collection::vec(event(), 1..120)) {
        let mut model = Model::default();
        for event in &events {
            model.step(event);
            model.check();
        }
        // At rest everybody has everything, whatever went before.
        for _ in 0..1000 {
            model.step(&Event::Turn(50, 3));
        }
        model.check();
        assert!(model.sweep.is_none());
        assert!(model.given.values().all(|&given| given == model.end));
    }
}

#[test]
fn who_leaves_is_passed_over_and_its_place_is_closed() {
    let mut model = Model::default();
    for _ in 0..5 {
        model.enter(Wire::WebSocket);
    }
    model.step(&Event::More(1));
    model.turn(2, 1);
    model.members.vacate(Wire::WebSocket, 1);
    model.members.vacate(Wire::WebSocket, 2);
    let sweep = model.sweep.as_mut().unwrap();
    let (mut turn, mut moved) = (Vec::new(), Vec::new());
    sweep.visit(&mut model.members, 9, &mut turn, |member, place| {
        moved.push((member, place));
    });
    assert_eq!((turn, moved), (vec![4, 5], vec![(4, 2), (5, 3)]));
}
