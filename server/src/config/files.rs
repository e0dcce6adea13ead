//! Files that a section names: passwords, certificates, keys.
//!
//! Does: reads them, from beside the configuration file. Owns: how long they may be. Never knows: what they are for. Keeps: what
//! is in them is in no message.

use super::{read_bounded, units::KIB, walk::Section};

/// Longest file that a section names.
const FILE_MAX: usize = 64 * KIB;

/// The password in the file of the key `password_file`.
pub(super) fn read_password(section: &mut Section<'_>) -> Option<String> {
    let bytes = read_file(section, "password_file")?;
    let password = std::str::from_utf8(bytes.trim_ascii())
        .ok()
        .filter(|text| !text.is_empty());
    if password.is_none() {
        section.note(
            "password_file",
            "a file without a password",
            "a password as text, white space around it aside",
        );
    }
    password.map(str::to_owned)
}

/// The bytes of the file that a key names.
pub(super) fn read_file(section: &mut Section<'_>, key: &'static str) -> Option<Vec<u8>> {
    let file = section.text(key, "the path of a file", |text| {
        (!text.is_empty()).then(|| text.to_owned())
    })?;
    let path = section.base().join(file);
    let noted = |error| {
        section.note(
            key,
            format!("{:?} ({error})", path.display().to_string()),
            "a file that can be read, 64KiB at most",
        );
    };
    read_bounded(&path, FILE_MAX).map_err(noted).ok()
}
