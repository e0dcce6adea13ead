//! Cut at every byte × conflation × `max_rate` × resume on another node equals never having been cut.

use std::time::Duration;

use tidegate::{
    model::{Placement, Policy},
    partition::Way,
    worker::outbox::OutboxMax,
};
use tidegate_tests::simulation::{Reached, Scene, World};

/// Seeds of each scene; `TIDEGATE_SEEDS` in the long run, `TIDEGATE_SEED` for one alone. Tells what was reached.
fn run(scene: &Scene, seeds: u64) -> Reached {
    let wanted = |name: &str| {
        tidegate::config::environment()
            .find(|(key, _)| key == name)
            .and_then(|(_, value)| value.parse().ok())
    };
    if let Some(seed) = wanted("TIDEGATE_SEED") {
        return World::run(scene, seed).unwrap_or_else(|violation| panic!("{violation}"));
    }
    let (mut broken, mut reached) = (Vec::new(), Reached::default());
    for seed in 0..wanted("TIDEGATE_SEEDS").unwrap_or(seeds) {
        match World::run(scene, seed) {
            Ok(one) => reached.add(one),
            Err(violation) => broken.push((seed, violation)),
        }
    }
    if let Some((_, first)) = broken.first() {
        let seeds: Vec<u64> = broken.iter().map(|(seed, _)| *seed).collect();
        panic!(
            "{} seeds broke: {:?}\n{first}",
            broken.len(),
            &seeds[..seeds.len().min(20)]
        );
    }
    reached
}

#[test]
fn views_by_channel() {
    run(&Scene::view(), 1000);
}

#[test]
fn views_spread_with_vectors() {
    run(
        &Scene {
            placement: Placement::Spread,
            channels: 2,
            ..Scene::view()
        },
        1000,
    );
}

#[test]
fn views_with_max_rate_and_slow_sockets() {
    run(
        &Scene {
            max_rate: Some(3.0),
            slow: 80,
            cut: 6,
            publish: 3,
            ..Scene::view()
        },
        1000,
    );
}

#[test]
fn views_with_short_tails_and_small_outboxes() {
    let outbox = OutboxMax {
        bytes: 1200,
        frames: 3,
    };
    run(
        &Scene {
            tail: 5,
            outbox,
            slow: 70,
            lag: 10,
            rows: 6,
            ..Scene::view()
        },
        1000,
    );
}

/// Large views over tails that hold next to nothing: most who return are older than the tail.
#[test]
fn views_of_which_only_the_rows_that_changed_come() {
    let scene = Scene {
        tail: 4,
        rows: 12,
        deletes: 40,
        padding: 60,
        cut: 8,
        slow: 50,
        publish: 3,
        max_rate: Some(4.0),
        ..Scene::view()
    };
    let answers = run(&scene, 1000).answers;
    assert!(answers.of(Way::Changes) > 0, "{answers:?}");
    assert!(answers.of(Way::TooOld) > 0, "{answers:?}");
}

#[test]
fn views_spread_of_which_only_the_rows_that_changed_come() {
    let outbox = OutboxMax {
        bytes: 4000,
        frames: 6,
    };
    let scene = Scene {
        placement: Placement::Spread,
        channels: 2,
        tail: 4,
        rows: 20,
        deletes: 30,
        padding: 60,
        cut: 8,
        slow: 50,
        lag: 10,
        publish: 3,
        restart: 1,
        outbox,
        ..Scene::view()
    };
    let answers = run(&scene, 1000).answers;
    assert!(answers.of(Way::Changes) > 0, "{answers:?}");
}

#[test]
fn views_whose_rows_have_a_time_to_live() {
    let scene = Scene {
        row_ttl: Some(Duration::from_millis(1500)),
        tail: 8,
        deletes: 10,
        publish: 1,
        rows: 8,
        trim: 2,
        replace: 4,
        restart: 1,
        ..Scene::view()
    };
    let reached = run(&scene, 1000);
    assert!(reached.expired > 0, "{reached:?}");
}

#[test]
fn views_whose_logs_are_trimmed_and_replaced_and_whose_nodes_restart() {
    run(
        &Scene {
            trim: 4,
            replace: 8,
            restart: 2,
            pause: 3,
            ..Scene::view()
        },
        1000,
    );
}

/// Logs which are cleaned, and nodes which pause for longer than a tombstone is kept.
fn compacted() -> Scene {
    Scene {
        folds: true,
        compact: 20,
        deletes: 35,
        restart: 1,
        pause: 2,
        unpause: 5,
        ..Scene::view()
    }
}

/// The same with views spread over their partitions, tails that are short, sockets that are slow.
fn spread(scene: &Scene) -> Scene {
    Scene {
        placement: Placement::Spread,
        channels: 2,
        rows: 8,
        replace: 4,
        tail: 8,
        slow: 60,
        max_rate: Some(4.0),
        ..scene.clone()
    }
}

#[test]
fn views_that_nodes_fold_from_logs_that_are_compacted() {
    run(&compacted(), 1000);
    let answers = run(&spread(&compacted()), 1000).answers;
    assert!(answers.of(Way::Changes) > 0, "{answers:?}");
}

/// Partitions are added while everything else happens; some go on writing to the old ones for a while.
fn grown() -> Scene {
    Scene {
        folds: true,
        grows_to: Some(4),
        straggle: 15,
        channels: 5,
        rows: 6,
        deletes: 35,
        restart: 1,
        ..Scene::view()
    }
}

#[test]
fn views_whose_channels_move_to_partitions_that_were_added() {
    run(&grown(), 1000);
    let short = Scene {
        tail: 5,
        slow: 70,
        cut: 7,
        padding: 40,
        max_rate: Some(4.0),
        grows_to: Some(6),
        ..grown()
    };
    let answers = run(&short, 1000).answers;
    assert!(answers.of(Way::Changes) > 0, "{answers:?}");
}

/// … and what was deleted there may be gone before a node has read it: then nothing of it is called live.
#[test]
fn views_whose_channels_moved_and_whose_tombstones_are_gone() {
    let scene = Scene {
        compact: 20,
        restart: 2,
        pause: 2,
        unpause: 5,
        ticks: 240,
        ..grown()
    };
    let reached = run(&scene, 1000);
    assert!(reached.incomplete > 0, "{reached:?}");
}

#[test]
fn events_whose_channels_move_to_partitions_that_were_added() {
    let scene = Scene {
        grows_to: Some(4),
        straggle: 15,
        channels: 5,
        restart: 1,
        ..Scene::events()
    };
    run(&scene, 1000);
}

/// Nodes that read views from a cache which others fold, and which is emptied, goes back, loses channels, and does not answer.
#[test]
fn views_that_come_from_a_cache() {
    let scene = Scene {
        cached: true,
        mishaps: 3,
        ..compacted()
    };
    run(&scene, 1000);
    let spread = spread(&scene);
    let answers = run(&spread, 1000).answers;
    assert!(answers.of(Way::Changes) > 0, "{answers:?}");
    // The tail does not reach back to the cache: the log is read in between.
    let far_behind = Scene {
        folding: 4,
        mishaps: 1,
        tail: 5,
        pause: 1,
        lag: 70,
        ..spread
    };
    let reached = run(&far_behind, 1000);
    assert!(reached.backfilled > 0, "{reached:?}");
    // So much is written that what is read in between reaches further than the node has come.
    let written_to = Scene {
        publish: 6,
        replace: 4,
        ..scene
    };
    let reached = run(&written_to, 1000);
    assert!(reached.backfilled > 0, "{reached:?}");
}

/// The cache does not answer for so long that nodes fold the log in its place.
#[test]
fn views_whose_cache_is_silent() {
    let scene = Scene {
        cached: true,
        mishaps: 8,
        restart: 3,
        ..compacted()
    };
    let reached = run(&spread(&scene), 1000);
    assert!(reached.folded_alone > 100, "{reached:?}");
    let reached = run(&scene, 1000);
    assert!(reached.folded_alone > 100, "{reached:?}");
}

#[test]
fn events_of_logs_that_nodes_read_elsewhere() {
    let scene = Scene {
        folds: true,
        tail: 6,
        pause: 3,
        replace: 4,
        restart: 1,
        ..Scene::events()
    };
    run(&scene, 1000);
}

/// Few clients on many nodes, who are cut again and again: partitions that nobody needs rest, and wake when somebody comes.
fn by_need(scene: &Scene) -> Scene {
    Scene {
        rest: 40,
        nodes: 3,
        partitions: 3,
        cut: 10,
        restart: 0,
        lag: 50,
        ticks: 200,
        ..scene.clone()
    }
}

/// What somebody is shown across a rest does not go back, and nothing of it is lost.
#[test]
fn views_whose_partitions_rest_while_nobody_needs_them() {
    // Nodes fold the logs themselves, and go on where they rested.
    let folds = by_need(&Scene {
        replace: 4,
        ..compacted()
    });
    let reached = run(&folds, 1000);
    assert!(reached.woken > 0, "{reached:?}");
    run(&spread(&folds), 1000);
    // A cache has the rows: who rested for long begins with those, who did not goes on.
    let cached = Scene {
        cached: true,
        mishaps: 3,
        replay: 12,
        ..folds
    };
    let reached = run(&cached, 1000);
    assert!(reached.woken > 0, "{reached:?}");
    assert!(reached.answers.of(Way::Tail) > 0, "{reached:?}");
    assert!(reached.answers.of(Way::TooOld) > 0, "{reached:?}");
    run(&spread(&cached), 1000);
}

#[test]
fn events_whose_partitions_rest_while_nobody_needs_them() {
    let scene = by_need(&Scene {
        folds: true,
        tail: 30,
        tail_age: Duration::from_millis(600),
        pause: 3,
        replace: 4,
        publish: 3,
        ..Scene::events()
    });
    let reached = run(&scene, 1000);
    assert!(reached.woken > 0, "{reached:?}");
    assert!(reached.answers.of(Way::Tail) > 0, "{reached:?}");
    assert!(reached.answers.of(Way::Gap) > 0, "{reached:?}");
    let spread = Scene {
        placement: Placement::Spread,
        channels: 2,
        ..scene
    };
    let reached = run(&spread, 1000);
    assert!(reached.woken > 0, "{reached:?}");
}

/// One channel with many readers, of whom each turn writes to one or two: what comes meanwhile goes along with what is ahead.
fn crowds(scene: &Scene) {
    let one_at_a_time = Scene {
        channels: 1,
        partitions: 1,
        clients: 9,
        slow: 20,
        cut: 3,
        lag: 5,
        publish: 3,
        ..scene.clone()
    };
    run(&one_at_a_time, 200);
    let two_at_a_time = Scene {
        sweep: 4,
        replace: 4,
        trim: 3,
        tail: 8,
        ..one_at_a_time
    };
    run(&two_at_a_time, 200);
}

#[test]
fn views_of_a_crowd() {
    crowds(&Scene::view());
}

#[test]
fn events_of_a_crowd() {
    crowds(&Scene::events());
}

#[test]
fn views_in_parts() {
    run(
        &Scene {
            padding: 20_000,
            rows: 8,
            slow: 0,
            clients: 2,
            ticks: 80,
            ..Scene::view()
        },
        200,
    );
}

#[test]
fn events_by_channel() {
    run(&Scene::events(), 1000);
}

#[test]
fn events_with_small_outboxes_short_tails_and_trimmed_logs() {
    let outbox = OutboxMax {
        bytes: 1 << 20,
        frames: 4,
    };
    run(
        &Scene {
            outbox,
            tail: 6,
            trim: 3,
            slow: 70,
            publish: 3,
            ..Scene::events()
        },
        1000,
    );
}

#[test]
fn events_spread_whose_logs_are_replaced() {
    run(
        &Scene {
            placement: Placement::Spread,
            channels: 2,
            replace: 8,
            restart: 2,
            pause: 3,
            ..Scene::events()
        },
        1000,
    );
}

#[test]
fn views_whose_policy_is_to_disconnect() {
    let outbox = OutboxMax {
        bytes: 1 << 20,
        frames: 3,
    };
    run(
        &Scene {
            policy: Policy::Disconnect,
            outbox,
            rows: 8,
            slow: 60,
            ..Scene::view()
        },
        500,
    );
}
