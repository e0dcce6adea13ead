//! Cuts and flips of the files, and directories that are not what they should be.

use super::*;

/// A log of three commits, closed; with where each ends.
async fn three_commits(place: &Place) -> Vec<usize> {
    let (engine, log) = place.open();
    let mut ends = Vec::new();
    for data in ["1", "22", "333"] {
        publish(&log, "a", data).await;
        ends.push(fs::read(&place.segments()[0]).unwrap().len());
    }
    engine.close();
    ends
}

#[tokio::test]
async fn cut_anywhere_in_the_last_commit_everything_before_is_there_and_nothing_half() {
    let place = Place::new("cut");
    let ends = three_commits(&place).await;
    let path = &place.segments()[0];
    let whole = fs::read(path).unwrap();
    for length in ends[1]..ends[2] {
        fs::write(path, &whole[..length]).unwrap();
        let (engine, log) = place.open();
        assert_eq!(
            (offsets(&read(&log)), rows(&log)),
            (vec![1, 2], vec![("a".into(), "22".into())]),
            "{length}"
        );
        assert_eq!(fs::read(path).unwrap().len(), ends[1], "{length}");
        // The offset is given again, and what follows is as sound.
        assert_eq!(publish(&log, "a", "4").await, 3);
        engine.close();
        assert_eq!(offsets(&read(&place.open().1)), [1, 2, 3]);
    }
}

#[tokio::test]
async fn a_flipped_byte_is_an_error_unless_it_may_be_a_write_that_was_cut_off() {
    let place = Place::new("flip");
    let ends = three_commits(&place).await;
    let path = &place.segments()[0];
    let whole = fs::read(path).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(path, &flipped).unwrap();
        match place.try_open(&place.dir) {
            Ok((engine, log)) => {
                assert!(at >= ends[1], "{at}: a commit in the middle was lost");
                assert_eq!(offsets(&read(&log)), [1, 2], "{at}");
                engine.close();
            }
            Err(DataError::Corrupt { path: named, .. }) => {
                assert!(at < ends[1] && named == *path, "{at}");
                assert_eq!(fs::read(path).unwrap(), flipped, "{at}: it was changed");
            }
            Err(other) => panic!("{at}: {other}"),
        }
    }
}

#[tokio::test]
async fn a_missing_or_torn_segment_is_told_apart() {
    let mut place = Place::new("missing");
    place.settings.retention.records = Some(8);
    let (engine, log) = place.open();
    for number in 0..4 {
        publish(&log, "a", &number.to_string()).await;
    }
    engine.close();
    let paths = place.segments();
    assert_eq!(paths.len(), 4, "a segment for each record");
    // The last one's head was not written when the power went: nothing was in it.
    let (last, middle) = (fs::read(&paths[3]).unwrap(), fs::read(&paths[1]).unwrap());
    fs::write(&paths[3], &last[..10]).unwrap();
    let (engine, log) = place.open();
    assert_eq!(offsets(&read(&log)), [1, 2, 3]);
    engine.close();
    fs::remove_file(&paths[1]).unwrap();
    let error = place.try_open(&place.dir).unwrap_err().to_string();
    assert!(
        error.contains("no segment that begins at offset 2"),
        "{error}"
    );
    fs::write(&paths[1], middle).unwrap();
    for gone in [paths[0].clone(), place.partition()] {
        fs::rename(&gone, place.dir.join("gone")).unwrap();
        let error = place.try_open(&place.dir).unwrap_err().to_string();
        assert!(
            error.contains("no segment that begins at offset 1"),
            "{error}"
        );
        fs::rename(place.dir.join("gone"), &gone).unwrap();
    }
}

#[tokio::test]
async fn a_directory_that_is_not_ours_alone_is_refused_and_left_as_it_is() {
    let place = Place::new("refused");
    let said = |path: &Path, word: &str| {
        let error = place.try_open(path).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains(&*path.to_string_lossy()),
            "{error}"
        );
    };
    let (engine, log) = place.open();
    publish(&log, "a", "1").await;
    said(&place.dir, "another process uses");
    engine.close();

    let mark = place.dir.join(MARK.0);
    fs::write(&mark, "tidegate data directory, format 99\n").unwrap();
    said(&place.dir, "format 99");
    fs::write(&mark, MARK.1).unwrap();
    assert_eq!(place.open().1.head(), Offset::new(1));

    let other = place.dir.with_extension("other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("thesis.txt"), "precious").unwrap();
    said(&other, "none of Tidegate's");
    said(&other.join("thesis.txt"), "is not a directory");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    fs::remove_dir_all(&other).unwrap();
    // Where nothing may be made: below a file.
    let error = place
        .try_open(Path::new("/dev/null/data"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/dev/null/data"), "{error}");
}

#[tokio::test]
async fn a_stream_that_is_configured_otherwise_is_refused() {
    let mut place = Place::new("differs");
    let (engine, log) = place.open();
    publish(&log, "a", "1").await;
    engine.close();
    place.settings.mode = Mode::Events;
    let error = place.try_open(&place.dir).unwrap_err().to_string();
    assert!(
        error.contains("mode = \"view\"") && error.contains("mode = \"events\""),
        "{error}"
    );
}
