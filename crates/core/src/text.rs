//! Text files that people have written, as their editors save them: UTF-8, with a byte-order mark or not, UTF-16 with
//! one, and any line ends.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// Far more than anybody writes by hand.
const LARGEST: u64 = 64 << 20;

/// Reads a text file, whose lines then end in `\n`.
///
/// # Errors
/// If it cannot be read, is too large or is not in one of these encodings: which line is not.
pub fn read(path: &Path) -> Result<String> {
    // Asked before it is opened: opening a pipe would wait for whoever writes into it.
    if !fs::metadata(path).map_err(Error::io("read", path))?.is_file() {
        return Err(Error::file(path, "is no file; expected a text file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::file(
            path,
            format!("expected at most {LARGEST} bytes of text, found more"),
        ));
    }
    decode(&bytes).map_err(|reason| Error::file(path, reason))
}

fn decode(bytes: &[u8]) -> Result<String, String> {
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest),
        _ => utf8(bytes),
    }?;
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    match text.find('\0') {
        None => Ok(text),
        Some(at) => Err(format!(
            "line {}: found a NUL, as in UTF-16 without a byte-order mark; save it as UTF-8",
            line(text.as_bytes(), at)
        )),
    }
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|error| {
        let begin = &bytes[..bytes.len().min(512)];
        if begin.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace()) {
            return "expected a text file, found something else".into();
        }
        let at = error.valid_up_to();
        let (line, byte) = (line(bytes, at), bytes[at]);
        format!("line {line}: expected UTF-8, found the byte 0x{byte:02x}; save it as UTF-8")
    })
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, String> {
    let pairs = bytes.chunks_exact(2);
    let cut = !pairs.remainder().is_empty();
    let units = pairs.map(|pair| unit([pair[0], pair[1]]));
    let mut text = String::new();
    for decoded in char::decode_utf16(units) {
        match decoded {
            Ok(decoded) => text.push(decoded),
            Err(_) => {
                let line = line(text.as_bytes(), text.len());
                return Err(format!(
                    "line {line}: expected UTF-16, found half of a pair; save it as UTF-8"
                ));
            }
        }
    }
    if cut {
        return Err("expected UTF-16, found an odd number of bytes; save it as UTF-8".into());
    }
    Ok(text)
}

/// The line of a byte, from 1.
fn line(text: &[u8], at: usize) -> usize {
    1 + text[..at].iter().filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_editors_save_is_read() {
        let text = "a\tß\n𝄞\n";
        let utf16: Vec<u16> = "\u{feff}a\tß\r\n𝄞\r\n".encode_utf16().collect();
        let with_mark = format!("\u{feff}{}", text.replace('\n', "\r"));
        for bytes in [
            text.as_bytes().to_vec(),
            with_mark.into_bytes(),
            utf16.iter().flat_map(|unit| unit.to_le_bytes()).collect(),
            utf16.iter().flat_map(|unit| unit.to_be_bytes()).collect(),
        ] {
            assert_eq!(decode(&bytes).unwrap(), text, "{bytes:?}");
        }
        assert_eq!(decode(b"").unwrap(), "");
        for (bytes, words) in [
            (&b"a\nb\xe9"[..], "line 2: expected UTF-8, found the byte 0xe9"),
            (b"a\0\n\0b\0", "line 1: found a NUL, as in UTF-16"),
            (b"\xff\xfea\0\n\0\x00\xd8", "line 2: expected UTF-16"),
            (b"\xff\xfea\0\n", "odd number"),
        ] {
            let error = decode(bytes).unwrap_err();
            assert!(error.contains(words) && error.contains("save it as UTF-8"), "{error}");
        }
    }

    #[test]
    fn what_is_no_text_is_called_so() {
        let error = decode(b"\xff\xd8\xff\xe0\0\x10JFIF\0").unwrap_err();
        assert_eq!(error, "expected a text file, found something else");
    }
}
