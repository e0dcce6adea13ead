//! How a group's leader shares partitions out: evenly, and each stays where it is as far as that is even.
//!
//! Whoever keeps a partition through a rebalance goes on without a pause: nothing is taken away before it is given to somebody
//! else, since what is done with a partition bears two who do it for a moment.

use std::collections::BTreeMap;

/// A member, as it told the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claimant {
    pub(super) id: String,
    /// The generation in which it had these: where two claim one, the newer claim holds.
    pub(super) generation: i32,
    pub(super) owned: Vec<u32>,
}

/// Who gets what of partitions `0..count`: as many as the others or one more, in order.
pub(super) fn share(count: u32, mut members: Vec<Claimant>) -> BTreeMap<String, Vec<u32>> {
    let mut free: Vec<bool> = vec![true; usize::try_from(count).unwrap_or(0)];
    members.sort_by(|a, b| (b.generation, &a.id).cmp(&(a.generation, &b.id)));
    for member in &mut members {
        member.owned.sort_unstable();
        member.owned.retain(|&partition| take(&mut free, partition));
    }
    // Who has most keeps one more than the others, where not all can have the same.
    members.sort_by(|a, b| (b.owned.len(), &a.id).cmp(&(a.owned.len(), &b.id)));
    let each = free.len() / members.len().max(1);
    let more = free.len() % members.len().max(1);
    let quotas = (0..members.len()).map(|at| each + usize::from(at < more));
    let mut left = Vec::new();
    let mut shares: Vec<(Claimant, usize)> = members.into_iter().zip(quotas).collect();
    for (member, quota) in &mut shares {
        left.extend(member.owned.split_off(member.owned.len().min(*quota)));
    }
    left.extend((0..count).filter(|&partition| take(&mut free, partition)));
    left.sort_unstable_by(|a, b| b.cmp(a));
    for (member, quota) in &mut shares {
        let wanting = quota.saturating_sub(member.owned.len());
        member
            .owned
            .extend(left.split_off(left.len().saturating_sub(wanting)));
        member.owned.sort_unstable();
    }
    shares
        .into_iter()
        .map(|(member, _)| (member.id, member.owned))
        .collect()
}

/// Whether it was still to be had; from now on it is not.
fn take(free: &mut [bool], partition: u32) -> bool {
    let place = usize::try_from(partition)
        .ok()
        .and_then(|at| free.get_mut(at));
    place.is_some_and(|free| std::mem::replace(free, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, generation: i32, owned: &[u32]) -> Claimant {
        Claimant {
            id: id.to_owned(),
            generation,
            owned: owned.to_vec(),
        }
    }

    fn shared(count: u32, members: &[Claimant]) -> Vec<(String, Vec<u32>)> {
        let shares = share(count, members.to_vec());
        let mut all: Vec<u32> = shares.values().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(
            all,
            (0..count).collect::<Vec<_>>(),
            "each is somebody's, once"
        );
        shares.into_iter().collect()
    }

    #[test]
    fn one_has_all_and_two_share() {
        let none: &[u32] = &[];
        assert_eq!(
            shared(3, &[member("a", -1, none)]),
            [("a".into(), vec![0, 1, 2])]
        );
        assert_eq!(
            shared(
                5,
                &[member("a", 1, &[0, 1, 2, 3, 4]), member("b", -1, none)]
            ),
            [("a".into(), vec![0, 1, 2]), ("b".into(), vec![3, 4])]
        );
        assert_eq!(
            shared(1, &[member("a", -1, none), member("b", 1, &[0])]),
            [("a".into(), vec![]), ("b".into(), vec![0])]
        );
        assert_eq!(share(4, Vec::new()), BTreeMap::new());
    }

    #[test]
    fn what_the_dead_had_goes_to_the_living_and_theirs_stays() {
        assert_eq!(
            shared(6, &[member("a", 3, &[0, 5]), member("c", 3, &[2, 4])]),
            [("a".into(), vec![0, 1, 5]), ("c".into(), vec![2, 3, 4])]
        );
    }

    #[test]
    fn of_two_claims_the_newer_holds_and_what_there_is_not_is_nobodys() {
        assert_eq!(
            shared(2, &[member("a", 3, &[0, 1, 1, 9]), member("b", 7, &[1])]),
            [("a".into(), vec![0]), ("b".into(), vec![1])]
        );
    }

    #[test]
    fn shares_differ_by_one_at_most_and_settled_ones_stay() {
        for members in 1..7_u32 {
            for count in 0..20_u32 {
                let owned = |of: u32| (0..count).filter(|p| p % 3 == of).collect::<Vec<_>>();
                let group: Vec<_> = (0..members)
                    .map(|of| member(&of.to_string(), 1, &owned(of)))
                    .collect();
                let first = shared(count, &group);
                let sizes = first.iter().map(|(_, share)| share.len());
                assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
                let settled: Vec<_> = first
                    .iter()
                    .map(|(id, share)| member(id, 2, share))
                    .collect();
                assert_eq!(shared(count, &settled), first);
            }
        }
    }
}
