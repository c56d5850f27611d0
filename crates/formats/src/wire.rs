//! Protobuf's wire format: the fields of a message, without what they mean and without allocating anything.

/// A number of at most 64 bits, seven a byte, and how many bytes it takes.
pub fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (place, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some((value, place + 1));
        }
    }
    None
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    /// A number, of at most 8 bytes.
    Number,
    /// What has a length: a message, a text, packed numbers.
    Bytes(&'a [u8]),
}

impl Field<'_> {
    /// Its bytes; those that a number takes at most.
    pub fn len(self) -> usize {
        match self {
            Field::Number => 8,
            Field::Bytes(bytes) => bytes.len(),
        }
    }
}

/// The fields of a message, their numbers and values; after an error, which says what is wrong, there are no more.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let (value, used) = varint(self.0)?;
        self.0 = &self.0[used..];
        Some(value)
    }

    fn bytes(&mut self, count: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count.try_into().ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => self.varint().map(|_| Field::Number)?,
            1 => self.bytes(8).map(|_| Field::Number)?,
            2 => {
                let count = self.varint()?;
                Field::Bytes(self.bytes(count)?)
            }
            5 => self.bytes(4).map(|_| Field::Number)?,
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or("a field that does not end in it");
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_seven_bits_a_byte() {
        assert_eq!(varint(&[0x96, 0x01, 0xff]), Some((150, 2)));
        assert_eq!(varint(&[[0xff; 9].as_slice(), &[1]].concat()), Some((u64::MAX, 10)));
        assert_eq!([varint(&[]), varint(&[0x80]), varint(&[0x80; 11])], [None; 3]);
    }

    #[test]
    fn fields_end_with_the_message() {
        let message = [8, 150, 1, 17, 0, 0, 0, 0, 0, 0, 0, 0, 26, 2, 7, 8, 37, 0, 0, 0, 0];
        let of = |bytes| Fields(bytes).collect::<Result<Vec<_>, _>>();
        let number = Field::Number;
        let expected = [(1, number), (2, number), (3, Field::Bytes(&[7, 8])), (4, number)];
        assert_eq!(of(&message).unwrap(), expected);
        let between = [0, 3, 12, 16, 21];
        for end in 0..=message.len() {
            assert_eq!(of(&message[..end]).is_ok(), between.contains(&end), "{end}");
        }
        // A kind of field that there is not, after which nothing is looked at.
        assert_eq!(Fields(&[11, 8, 1]).count(), 1);
    }
}
