//! What tokens permit, shared by the connections that bear alike ones.

use std::{collections::HashMap, sync::Arc};

use super::lane::NONE;
use crate::auth::Claims;

/// Claims that many connections share, by number: a connection holds four bytes of them.
#[derive(Default)]
pub(super) struct Interned {
    numbers: HashMap<Arc<Claims>, u32>,
    held: Vec<Option<(Arc<Claims>, usize)>>,
    free: Vec<u32>,
}

impl Interned {
    pub(super) fn take(&mut self, claims: Arc<Claims>) -> u32 {
        if let Some(&number) = self.numbers.get(&claims) {
            if let Some(Some((_, holders))) = self.held.get_mut(number as usize) {
                *holders += 1;
            }
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.held.push(None);
            u32::try_from(self.held.len() - 1).unwrap_or(NONE)
        });
        self.held[number as usize] = Some((claims.clone(), 1));
        self.numbers.insert(claims, number);
        number
    }

    pub(super) fn release(&mut self, number: u32) {
        let Some(entry) = self.held.get_mut(number as usize) else {
            return;
        };
        let Some((claims, holders)) = entry else {
            return;
        };
        *holders -= 1;
        if *holders == 0 {
            self.numbers.remove(claims);
            *entry = None;
            self.free.push(number);
        }
    }

    pub(super) fn get(&self, number: u32) -> Option<&Arc<Claims>> {
        self.held
            .get(number as usize)?
            .as_ref()
            .map(|(claims, _)| claims)
    }
}
