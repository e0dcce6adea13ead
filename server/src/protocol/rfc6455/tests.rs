use std::io::Cursor;

use proptest::{collection::vec, prelude::*, sample::Index};
use tokio_tungstenite::tungstenite::protocol::frame::{
    Frame, FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::*;

const LIMITS: Limits = Limits {
    message_bytes: 70_000,
};
const TEXT: u8 = 0x81;
const TEXT_BEGIN: u8 = 0x01;
const MORE: u8 = 0x00;
const END: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// What became of a stream of bytes.
#[derive(Debug, PartialEq)]
struct Heard {
    events: Vec<String>,
    verdict: Result<(), Violation>,
}

/// Feeds the pieces one by one, each from a buffer of its own, until one is refused.
fn hear<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    partial: &mut Option<Box<Partial>>,
) -> Heard {
    let mut events = Vec::new();
    let mut verdict = Ok(());
    for piece in pieces {
        let mut shared = piece.to_vec();
        verdict = verdict.and(feed(partial, &mut shared, &LIMITS, &mut |event| {
            events.push(format!("{event:?}"));
            ControlFlow::Continue(())
        }));
        if let Some(p) = partial {
            assert!(!p.is_idle(), "an idle connection holds nothing");
            assert!(p.held_bytes() <= LIMITS.message_bytes + 500);
        }
    }
    Heard { events, verdict }
}

fn hear_whole(stream: &[u8]) -> Heard {
    hear([stream], &mut None)
}

/// A masked frame, its length in the shortest form.
fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let (payload, mask) = (payload.as_ref(), [0x37, 0xfa, 0x21, 0x3d]);
    let mut out = Vec::new();
    frame_header(Opcode::Text, payload.len(), &mut out);
    out[0] = first;
    out[1] |= 0x80;
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    out
}

fn frames(list: &[(u8, &[u8])]) -> Vec<u8> {
    list.iter()
        .flat_map(|(first, payload)| frame(*first, payload))
        .collect()
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(CLOSE, [&code.to_be_bytes(), reason].concat())
}

/// Streams that break a rule, the events before, and the verdict.
fn broken() -> Vec<(Vec<u8>, usize, Violation, u16)> {
    use Violation as V;
    let long = |first, bytes: &[u8]| {
        [
            &[first, 0x80 | if bytes.len() == 2 { 126 } else { 127 }],
            bytes,
            &[0; 4],
        ]
        .concat()
    };
    let too_big = V::MessageTooBig {
        limit: LIMITS.message_bytes,
    };
    let mut fragments = frame(TEXT_BEGIN, "");
    (1..FRAGMENTS_MAX).for_each(|_| fragments.extend(frame(MORE, "")));
    let mut list = vec![
        (frame(0xc1, ""), 0, V::ReservedBits, 1002),
        (frame(0xa1, ""), 0, V::ReservedBits, 1002),
        (frame(0x99, ""), 0, V::ReservedBits, 1002),
        (vec![TEXT, 0x01, b'a'], 0, V::Unmasked, 1002),
        (vec![PING, 0x00], 0, V::Unmasked, 1002),
        (frame(PING & 0x7f, ""), 0, V::ControlFragmented, 1002),
        (frame(CLOSE & 0x7f, ""), 0, V::ControlFragmented, 1002),
        (frame(PING, [0; 126]), 0, V::ControlTooLong, 1002),
        (frame(CLOSE, [0; 70_001]), 0, V::ControlTooLong, 1002),
        (
            long(TEXT, &125u16.to_be_bytes()),
            0,
            V::LengthNotMinimal,
            1002,
        ),
        (
            long(TEXT, &0xffff_u64.to_be_bytes()),
            0,
            V::LengthNotMinimal,
            1002,
        ),
        (
            long(TEXT, &(1u64 << 63).to_be_bytes()),
            0,
            V::LengthTopBit,
            1002,
        ),
        (long(TEXT, &70_001u64.to_be_bytes()), 0, too_big, 1009),
        (long(TEXT, &(u64::MAX >> 1).to_be_bytes()), 0, too_big, 1009),
        (
            [frame(TEXT_BEGIN, [b'a'; 69_999]), frame(MORE, "aa")].concat(),
            0,
            too_big,
            1009,
        ),
        (
            [frame(TEXT_BEGIN, [b'a'; 69_999]), frame(END, "\u{e9}")].concat(),
            0,
            too_big,
            1009,
        ),
        (
            [fragments, frame(PING, ""), frame(END, "")].concat(),
            1,
            V::TooManyFragments,
            1009,
        ),
        (frame(END, "a"), 0, V::NothingToContinue, 1002),
        (
            [frame(TEXT, "a"), frame(MORE, "a")].concat(),
            1,
            V::NothingToContinue,
            1002,
        ),
        (
            frames(&[(TEXT_BEGIN, b"a"), (TEXT, b"b")]),
            0,
            V::MessageInterrupted,
            1002,
        ),
        (
            frames(&[(TEXT_BEGIN, b"a"), (MORE, b""), (0x82, b"b")]),
            0,
            V::MessageInterrupted,
            1002,
        ),
        (frame(0x82, "a"), 0, V::Binary, 1003),
        (frame(0x02, ""), 0, V::Binary, 1003),
        (frame(CLOSE, "a"), 0, V::CloseTooShort, 1002),
        (close(1000, b"\xff"), 0, V::Utf8, 1007),
        (frame(TEXT, b"a\xc3"), 0, V::Utf8, 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 0, V::Utf8, 1007),
        (frame(TEXT, b"\xc0\xaf"), 0, V::Utf8, 1007),
        (frame(TEXT, b"\xf4\x90\x80\x80"), 0, V::Utf8, 1007),
        (
            frames(&[
                (TEXT_BEGIN, b"\xce"),
                (PING, b"!"),
                (MORE, b""),
                (END, b"a"),
            ]),
            1,
            V::Utf8,
            1007,
        ),
        (
            frames(&[(TEXT_BEGIN, b"\xe2\x82"), (END, b"")]),
            0,
            V::Utf8,
            1007,
        ),
    ];
    list.extend(
        [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]
            .map(|op| (frame(0x80 | op, ""), 0, V::UnknownOpcode(op), 1002)),
    );
    list.extend(
        [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535]
            .map(|code| (close(code, b"why"), 0, V::CloseCode(code), 1002)),
    );
    list
}

/// Streams that keep all rules, and what they say.
fn kept() -> Vec<(Vec<u8>, Vec<Event<'static>>)> {
    let text = |s: String| Event::Text(s.leak());
    let said = |code, reason| Event::Close {
        code: Some(code),
        reason,
    };
    let mut many = frame(TEXT_BEGIN, "a");
    (2..FRAGMENTS_MAX).for_each(|_| many.extend(frame(MORE, "")));
    many.extend(frame(END, "b"));
    let mut list = vec![
        (vec![], vec![]),
        (frame(TEXT, ""), vec![Event::Text("")]),
        (
            frame(TEXT, "Gr\u{fc}\u{df}e \u{1f30a}"),
            vec![Event::Text("Gr\u{fc}\u{df}e \u{1f30a}")],
        ),
        (
            frames(&[(TEXT, b"a"), (TEXT, b""), (PING, b"p"), (TEXT, b"c")]),
            vec![
                Event::Text("a"),
                Event::Text(""),
                Event::Ping(b"p"),
                Event::Text("c"),
            ],
        ),
        (
            frames(&[(TEXT_BEGIN, b""), (END, b"")]),
            vec![Event::Text("")],
        ),
        (
            frames(&[
                (TEXT_BEGIN, b"a\xf0"),
                (PING, b""),
                (MORE, b"\x9f\x8c"),
                (PONG, b"x"),
                (MORE, b""),
                (END, b"\x8az"),
                (TEXT, b"n"),
            ]),
            vec![
                Event::Ping(b""),
                Event::Pong(b"x"),
                Event::Text("a\u{1f30a}z"),
                Event::Text("n"),
            ],
        ),
        (frame(PING, [7; 125]), vec![Event::Ping(&[7; 125])]),
        (many, vec![Event::Text("ab")]),
        (
            frames(&[(CLOSE, b""), (TEXT, b"late")]),
            vec![Event::Close {
                code: None,
                reason: "",
            }],
        ),
        (
            frames(&[
                (TEXT_BEGIN, b"half"),
                (CLOSE, b"\x03\xe8bye"),
                (0xff, b"late"),
            ]),
            vec![said(1000, "bye")],
        ),
    ];
    for len in [
        1, 3, 7, 8, 9, 124, 125, 126, 127, 1000, 65_535, 65_536, 70_000,
    ] {
        list.push((frame(TEXT, "x".repeat(len)), vec![text("x".repeat(len))]));
    }
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999,
    ] {
        list.push((close(code, b""), vec![said(code, "")]));
    }
    list
}

#[test]
fn broken_rules_have_their_codes() {
    for (stream, before, violation, code) in broken() {
        let heard = hear_whole(&stream);
        assert_eq!(
            heard.verdict,
            Err(violation),
            "{:?}",
            &stream[..stream.len().min(20)]
        );
        assert_eq!(heard.events.len(), before, "{violation}");
        assert_eq!(violation.close_code(), code, "{violation}");
        assert!(violation.to_string().len() <= REASON_MAX, "{violation}");
    }
    assert!(
        Violation::MessageTooBig { limit: usize::MAX }
            .to_string()
            .len()
            <= REASON_MAX
    );
}

#[test]
fn kept_rules_give_their_events() {
    for (stream, events) in kept() {
        let events = events.iter().map(|e| format!("{e:?}")).collect();
        assert_eq!(
            hear_whole(&stream),
            Heard {
                events,
                verdict: Ok(())
            }
        );
    }
}

#[test]
fn reads_may_cut_anywhere() {
    let streams = kept()
        .into_iter()
        .map(|k| k.0)
        .chain(broken().into_iter().map(|b| b.0));
    for stream in streams {
        let whole = hear_whole(&stream);
        assert_eq!(hear(stream.chunks(1), &mut None), whole);
        let step = 1 + stream.len() / 300;
        for at in (0..=stream.len()).step_by(step) {
            let (first, second) = stream.split_at(at);
            assert_eq!(hear([first, second], &mut None), whole, "cut at {at}");
        }
    }
}

#[test]
fn a_whole_frame_is_read_where_it_lies() {
    let mut shared = frames(&[(TEXT, b"first"), (PING, b"second")]);
    let range = shared.as_ptr_range();
    let (mut partial, mut seen) = (None, 0);
    let verdict = feed(&mut partial, &mut shared, &LIMITS, &mut |event| {
        let at = match event {
            Event::Text(text) => text.as_ptr(),
            Event::Ping(payload) | Event::Pong(payload) => payload.as_ptr(),
            Event::Close { reason, .. } => reason.as_ptr(),
        };
        assert!(range.contains(&at));
        seen += 1;
        ControlFlow::Continue(())
    });
    assert_eq!((verdict, seen, partial.is_none()), (Ok(()), 2, true));
}

#[test]
fn what_is_announced_is_not_reserved_but_checked_at_once() {
    let big = frame(TEXT, [b'a'; 70_000]);
    let mut partial = None;
    assert_eq!(hear([&big[..20]], &mut partial).verdict, Ok(()));
    assert!(partial.as_ref().is_some_and(|p| p.held_bytes() < 500));
    assert_eq!(hear([&big[20..]], &mut partial).events.len(), 1);
    assert!(partial.is_none());

    let too_big = frame(TEXT, [b'a'; 70_001]);
    let limit = LIMITS.message_bytes;
    assert_eq!(
        hear_whole(&too_big[..14]).verdict,
        Err(Violation::MessageTooBig { limit })
    );
}

#[test]
fn a_bad_byte_is_refused_before_its_frame_is_whole() {
    for (text, bad) in [
        (&b"ok\xffmore"[..], 3),
        (b"\xed\xa0\x80", 2),
        (b"\xf4\x90\x80\x80", 2),
        (b"\xe2\x82a", 3),
    ] {
        let stream = frame(TEXT, [text, &[b'a'; 100]].concat());
        assert_eq!(
            hear_whole(&stream[..6 + bad - 1]).verdict,
            Ok(()),
            "{text:?}"
        );
        assert_eq!(
            hear_whole(&stream[..6 + bad]).verdict,
            Err(Violation::Utf8),
            "{text:?}"
        );
        assert_eq!(
            hear(stream[..6 + bad].chunks(1), &mut None).verdict,
            Err(Violation::Utf8)
        );
    }
}

#[test]
fn nothing_is_read_after_the_end() {
    let more = frame(TEXT, "more");
    for ending in [close(1000, b""), frame(0xff, "")] {
        let mut partial = None;
        let heard = hear([&ending[..], &more], &mut partial);
        assert!(heard.events.len() <= 1 && !heard.events.contains(&"Text(\"more\")".to_owned()));
        assert_eq!(
            hear([&more[..]], &mut partial),
            Heard {
                events: vec![],
                verdict: Ok(())
            }
        );
    }
    let (mut partial, mut seen) = (None, 0);
    for mut input in [more.repeat(2), more] {
        let verdict = feed(&mut partial, &mut input, &LIMITS, &mut |_| {
            seen += 1;
            ControlFlow::Break(())
        });
        assert_eq!((verdict, seen), (Ok(()), 1));
    }
}

#[test]
fn headers_are_read_back_by_another_reader() {
    for len in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 40] {
        for (ours, theirs) in [
            (Opcode::Continuation, OpCode::Data(Data::Continue)),
            (Opcode::Text, OpCode::Data(Data::Text)),
            (Opcode::Binary, OpCode::Data(Data::Binary)),
            (Opcode::Close, OpCode::Control(Control::Close)),
            (Opcode::Ping, OpCode::Control(Control::Ping)),
            (Opcode::Pong, OpCode::Control(Control::Pong)),
        ] {
            let mut out = Vec::new();
            frame_header(ours, len, &mut out);
            assert_eq!(out.len(), header_len(len));
            let (header, read) = FrameHeader::parse(&mut Cursor::new(&out)).unwrap().unwrap();
            assert_eq!(
                (header.opcode, header.is_final, header.mask, read),
                (theirs, true, None, len as u64)
            );
        }
    }
}

#[test]
fn a_reason_is_cut_between_characters() {
    for (reason, kept) in [
        ("", 0),
        ("going away", 10),
        (&"x".repeat(124), 123),
        (&"\u{e9}".repeat(62), 122),
    ] {
        let mut out = Vec::new();
        close_frame(1001, reason, &mut out);
        assert_eq!(
            out[..4],
            [CLOSE, u8::try_from(2 + kept).unwrap(), 0x03, 0xe9]
        );
        assert_eq!(&out[4..], &reason.as_bytes()[..kept]);
    }
}

fn cut<'a>(stream: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    at.extend([0, stream.len()]);
    at.sort_unstable();
    at.windows(2).map(|w| &stream[w[0]..w[1]]).collect()
}

/// Frames that are often, but not always, right.
fn doubtful() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => proptest::sample::select(vec![TEXT, TEXT_BEGIN, MORE, END, PING, PONG]),
        1 => any::<u8>(),
    ];
    let piece = prop_oneof![
        6 => "\\PC{0,9}".prop_map(String::into_bytes),
        3 => proptest::sample::select(vec![&b"\xf0\x9f"[..], b"\x8c\x8a", b"\xe2", b"\x82\xac"]).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..200),
    ];
    vec((first, piece), 0..12).prop_map(|list| {
        list.iter()
            .flat_map(|(first, payload)| frame(*first, payload))
            .collect()
    })
}

/// What a client may send: a message in fragments, and controls between them.
#[derive(Debug, Clone)]
struct Sent {
    text: String,
    cuts: Vec<Index>,
    controls: Vec<(bool, Vec<u8>)>,
    mask: [u8; 4],
}

fn sent() -> impl Strategy<Value = Sent> {
    let text = prop_oneof!["\\PC{0,40}", "[a-\u{ff}]{100,200}"];
    let controls = vec((any::<bool>(), vec(any::<u8>(), 0..=CONTROL_MAX)), 0..3);
    (text, vec(any::<Index>(), 0..4), controls, any::<[u8; 4]>()).prop_map(
        |(text, cuts, controls, mask)| Sent {
            text,
            cuts,
            controls,
            mask,
        },
    )
}

/// Writes what is sent with tungstenite, and says what must be heard.
fn write(sent: &Sent, stream: &mut Vec<u8>, events: &mut Vec<String>) {
    let mut put = |mut frame: Frame| {
        frame.header_mut().mask = Some(sent.mask);
        frame.format(stream).unwrap();
    };
    let pieces = cut(sent.text.as_bytes(), &sent.cuts);
    let mut controls = sent.controls.iter();
    for (i, piece) in pieces.iter().enumerate() {
        let data = if i == 0 { Data::Text } else { Data::Continue };
        put(Frame::message(
            piece.to_vec(),
            OpCode::Data(data),
            i + 1 == pieces.len(),
        ));
        if i + 1 == pieces.len() {
            events.push(format!("{:?}", Event::Text(&sent.text)));
        }
        match controls.next() {
            Some((true, payload)) => {
                put(Frame::ping(payload.clone()));
                events.push(format!("{:?}", Event::Ping(payload)));
            }
            Some((false, payload)) => {
                put(Frame::pong(payload.clone()));
                events.push(format!("{:?}", Event::Pong(payload)));
            }
            None => {}
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_cut_anywhere_are_heard_alike(stream in vec(any::<u8>(), 0..300), cuts in vec(any::<Index>(), 0..6)) {
        prop_assert_eq!(hear(cut(&stream, &cuts), &mut None), hear_whole(&stream));
    }

    #[test]
    fn doubtful_frames_cut_anywhere_are_heard_alike(stream in doubtful(), cuts in vec(any::<Index>(), 0..6)) {
        prop_assert_eq!(hear(cut(&stream, &cuts), &mut None), hear_whole(&stream));
    }

    #[test]
    fn another_writers_messages_are_heard(list in vec(sent(), 0..6), cuts in vec(any::<Index>(), 0..6)) {
        let (mut stream, mut events) = (Vec::new(), Vec::new());
        list.iter().for_each(|sent| write(sent, &mut stream, &mut events));
        let mut partial = None;
        prop_assert_eq!(hear(cut(&stream, &cuts), &mut partial), Heard { events, verdict: Ok(()) });
        prop_assert!(partial.is_none());
    }
}
