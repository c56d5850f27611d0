//! TensorBoard's event files: what a training writes for it, and in which frames.
//!
//! ```text
//! length u64 | masked CRC-32C of that u32 | Event | masked CRC-32C of the event u32      TFRecord, little-endian
//! ```
//!
//! Values have the forms that PyTorch's `SummaryWriter` gives them, since these are what every reader of such files
//! knows: a `simple_value`, an `image`, a `histo`, and for texts a tensor of the plugin `text`.

mod histogram;
#[rustfmt::skip] // as prost-build writes it
#[allow(missing_docs)] // tensorboard.proto has them
pub mod proto;

use std::io::{self, Write};

use crc_fast::{CrcAlgorithm, checksum};
use prost::Message;

pub use histogram::Histogram;
use proto::Event;
use proto::session_log::SessionStatus;
use proto::summary::{Image, Value, value};
use proto::{SessionLog, Summary, SummaryMetadata, TensorProto, TensorShapeProto, event};

/// The version of the format, as a file's first event says it: from this one on, restarts are looked for.
const VERSION: &str = "brain.Event:2";
/// TensorFlow's number of a tensor of strings.
const STRINGS: i32 = 7;

/// An event file's first event. `wall_time` is in seconds since 1970, here and below.
pub fn version(wall_time: f64) -> Event {
    let what = event::What::FileVersion(VERSION.into());
    Event { wall_time, step: 0, what: Some(what) }
}

/// An event that takes back what earlier files of the folder have of this step and of later ones.
pub fn restart(wall_time: f64, step: u32) -> Event {
    let log = SessionLog { status: SessionStatus::Start.into() };
    Event { wall_time, step: step.into(), what: Some(event::What::SessionLog(log)) }
}

/// An event with values after so many steps.
pub fn summary(wall_time: f64, step: u32, value: Vec<Value>) -> Event {
    let what = event::What::Summary(Summary { value });
    Event { wall_time, step: step.into(), what: Some(what) }
}

/// A number.
pub fn scalar(tag: impl Into<String>, number: f32) -> Value {
    of(tag, value::Value::SimpleValue(number))
}

/// A picture in RGB, `png` with its width and height.
pub fn image(tag: impl Into<String>, [width, height]: [usize; 2], png: Vec<u8>) -> Value {
    let image = Image {
        height: height as i32,
        width: width as i32,
        colorspace: 3,
        encoded_image_string: png,
    };
    of(tag, value::Value::Image(image))
}

/// How values are distributed.
pub fn histogram(tag: impl Into<String>, histogram: &Histogram) -> Value {
    of(tag, value::Value::Histo(histogram.proto()))
}

/// A text, which TensorBoard would show as Markdown: here, as it stands.
pub fn text(tag: impl Into<String>, text: &str) -> Value {
    let plugin_data = proto::summary_metadata::PluginData { plugin_name: String::from("text") };
    let tensor = TensorProto {
        dtype: STRINGS,
        tensor_shape: Some(TensorShapeProto {}),
        string_val: vec![literal(text).into_bytes()],
    };
    let metadata = Some(SummaryMetadata { plugin_data: Some(plugin_data) });
    Value { metadata, ..of(tag, value::Value::Tensor(tensor)) }
}

fn of(tag: impl Into<String>, value: value::Value) -> Value {
    Value { tag: tag.into(), metadata: None, value: Some(value) }
}

/// Markdown that shows a text as it stands: a file's name must not become a link, or a picture that is fetched.
fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => literal.push_str("&lt;"),
            '>' => literal.push_str("&gt;"),
            '&' => literal.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' => literal.extend(['\\', character]),
            other => literal.push(other),
        }
    }
    literal
}

/// Writes an event in its frame.
///
/// # Errors
/// What the writer says.
pub fn write(to: &mut impl Write, event: &Event) -> io::Result<()> {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    to.write_all(&length)?;
    to.write_all(&masked(&length).to_le_bytes())?;
    to.write_all(&data)?;
    to.write_all(&masked(&data).to_le_bytes())
}

/// A checksum of bytes that may hold checksums themselves: that is what it is masked for.
fn masked(bytes: &[u8]) -> u32 {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_that_tensorboard_writes() {
        // By tensorboard 2.21.0: RecordWriter(file).write(Event(...).SerializeToString()).
        let mut file = Vec::new();
        write(&mut file, &version(1.5)).unwrap();
        write(&mut file, &restart(1.5, 300)).unwrap();
        write(&mut file, &summary(1.5, 7, vec![scalar("train/loss", 0.25)])).unwrap();
        let written = concat!(
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c10000000",
            "0000000095fbfe1809000000000000f83f10ac023a020801713b788a200000000000000029eda95009000000",
            "000000f83f10072a130a110a0a747261696e2f6c6f7373150000803ef4985d1a",
        );
        assert_eq!(file.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), written);
    }

    #[test]
    fn a_text_is_shown_as_it_stands() {
        assert_eq!(literal("dead: 3 of conv1"), "dead: 3 of conv1");
        assert_eq!(literal("![x](http://y/z_1.png)"), r"!\[x\](http://y/z\_1.png)");
        assert_eq!(literal(r"<img src=a&b>\"), r"&lt;img src=a&amp;b&gt;\\");
    }
}
