//! Event files of TensorBoard: a run's scalars as a file of TFRecords, one `tensorflow.Event` each.
//!
//! Written by hand, because three messages with a handful of fields are all it takes (tensorflow
//! `core/util/event.proto`, `core/framework/summary.proto`):
//!
//! ```text
//! Event      { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; SessionLog session_log = 7; }
//! Summary    { repeated Value value = 1; }    Value { string tag = 1; float simple_value = 2; }
//! SessionLog { SessionStatus status = 1; }    START = 1
//! ```
//!
//! The file says what `log.jsonl` says and is made from it: a run that goes on begins a new file with all that is kept,
//! and a `START` before it tells a TensorBoard that is looking to forget the rest.

use super::log::Event;
use crate::ingest::tfrecord::masked_crc;

/// The records with which a file begins.
pub fn begin(time: f64) -> Vec<u8> {
    let mut version = header(time, 0);
    bytes_field(&mut version, 3, b"brain.Event:2");
    let mut start = header(time, 0);
    bytes_field(&mut start, 7, &[1 << 3, 1]);
    [framed(&version), framed(&start)].concat()
}

/// The record of an event; empty for those that have no scalars.
pub fn record(event: &Event) -> Vec<u8> {
    let (step, time, scalars) = match event {
        Event::Step { step, time, loss, rate, norm, epoch, tokens_per_second, mfu, memory, .. } => {
            let scalars = vec![
                ("train/loss", *loss),
                ("train/learning_rate", *rate),
                ("train/gradient_norm", *norm),
                ("train/epoch", *epoch),
                ("speed/tokens_per_second", *tokens_per_second),
                ("speed/mfu", *mfu),
                ("speed/memory_bytes", *memory as f64),
            ];
            (*step, *time, scalars)
        }
        Event::Validation { step, time, loss, .. } => (*step, *time, vec![("validation/loss", *loss)]),
        Event::Skipped { step, time, .. } => (*step, *time, vec![("train/skipped", 1.0)]),
        Event::Started { .. }
        | Event::Warning { .. }
        | Event::Checkpoint { .. }
        | Event::Stopped { .. }
        | Event::Finished { .. } => return Vec::new(),
    };
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut message = Vec::new();
        bytes_field(&mut message, 1, tag.as_bytes());
        message.push(2 << 3 | 5); // 32 bits
        message.extend((value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &message);
    }
    let mut event = header(time, step);
    bytes_field(&mut event, 5, &summary);
    framed(&event)
}

/// Fields that every event begins with.
fn header(time: f64, step: u64) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1]; // 64 bits
    event.extend(time.to_le_bytes());
    // A number of 0 is left out.
    if step > 0 {
        event.push(2 << 3);
        varint(&mut event, step);
    }
    event
}

fn bytes_field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2); // length-delimited
    varint(message, bytes.len() as u64);
    message.extend(bytes);
}

fn varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 1 << 7 {
        message.push(number as u8 | 1 << 7);
        number >>= 7;
    }
    message.push(number as u8);
}

/// As [`crate::ingest::tfrecord`] reads it.
fn framed(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_crc(payload).to_le_bytes());
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Result;
    use crate::ingest::record::Record;
    use crate::ingest::tfrecord::TfRecordFile;

    /// The payloads are what TensorFlow 2.19 writes for the same events.
    #[test]
    fn an_event_is_a_record() {
        let event = Event::Validation { step: 300, time: 1.5, loss: 2.0, targets: 7 };
        let mut bytes = begin(1.5);
        bytes.extend(record(&event));
        let mut payloads = Vec::new();
        let file = TfRecordFile::open("events".as_ref(), &bytes[..]).unwrap();
        let mut visit = |record: Record<'_>| -> Result<()> {
            payloads.push(record.payload.to_vec());
            Ok(())
        };
        file.visit(0..9, &|_| true, &mut visit, &mut |damage| panic!("{}", damage.diagnostic)).unwrap();
        let hex = |bytes: &Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let expected = [
            "09000000000000f83f1a0d627261696e2e4576656e743a32",
            "09000000000000f83f3a020801",
            "09000000000000f83f10ac022a180a160a0f76616c69646174696f6e2f6c6f73731500000040",
        ];
        assert_eq!(payloads.iter().map(hex).collect::<Vec<_>>(), expected);
    }
}
