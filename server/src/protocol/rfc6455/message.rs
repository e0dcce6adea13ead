//! A text message whose payload comes in pieces.
//!
//! Does: joins the pieces and checks them as UTF-8 as they come (RFC 6455, section 8.1), wherever they are cut. Owns:
//! the text so far. Never knows: frames. Keeps: it is refused at its first bad byte, and holds no more than arrived,
//! doubled at most, and never more than the limit.

use std::str;

use super::Violation;

/// The text so far, and the bytes so far of a character that is not whole.
#[derive(Debug, Default)]
pub(super) struct Message {
    text: String,
    cut: [u8; 4],
    cut_len: usize,
    fragments: u32,
}

impl Message {
    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.text.len() + self.cut_len
    }

    /// Frames so far, with the one whose payload is arriving.
    pub(super) fn fragments(&self) -> u32 {
        self.fragments
    }

    pub(super) fn begin_fragment(&mut self) {
        self.fragments = self.fragments.saturating_add(1);
    }

    /// What the text holds on the heap.
    pub(super) fn held_bytes(&self) -> usize {
        self.text.capacity()
    }

    /// Adds unmasked payload; `limit` bounds the memory reserved, the length has been checked before.
    pub(super) fn push(&mut self, payload: &[u8], limit: usize) -> Result<(), Violation> {
        let payload = self.complete_character(payload, limit)?;
        match str::from_utf8(payload) {
            Ok(text) => self.append(text, limit),
            Err(error) => {
                let (valid, cut) = payload.split_at(error.valid_up_to());
                if error.error_len().is_some() {
                    return Err(Violation::Utf8);
                }
                self.append(str::from_utf8(valid).map_err(|_| Violation::Utf8)?, limit);
                self.cut[..cut.len()].copy_from_slice(cut);
                self.cut_len = cut.len();
            }
        }
        Ok(())
    }

    /// The whole text.
    pub(super) fn finish(self) -> Result<String, Violation> {
        match self.cut_len {
            0 => Ok(self.text),
            _ => Err(Violation::Utf8),
        }
    }

    /// Takes what the character cut by the last piece lacks; the rest is returned.
    fn complete_character<'a>(
        &mut self,
        mut payload: &'a [u8],
        limit: usize,
    ) -> Result<&'a [u8], Violation> {
        while self.cut_len > 0
            && let Some((&byte, rest)) = payload.split_first()
        {
            let mut character = self.cut;
            character[self.cut_len] = byte; // three bytes at most can be cut: four are a character, or an error
            self.cut = character;
            self.cut_len += 1;
            payload = rest;
            match str::from_utf8(&character[..self.cut_len]) {
                Ok(whole) => {
                    self.append(whole, limit);
                    self.cut_len = 0;
                }
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(Violation::Utf8),
            }
        }
        Ok(payload)
    }

    fn append(&mut self, text: &str, limit: usize) {
        let need = self.text.len() + text.len();
        if need > self.text.capacity() {
            let room = need.max((self.text.capacity() * 2).min(limit));
            self.text.reserve_exact(room - self.text.len());
        }
        self.text.push_str(text);
    }
}
