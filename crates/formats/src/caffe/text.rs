//! Protobuf's text format, as far as prototxt needs it, straight into the messages. Fields that are not among ours are
//! skipped.

use zfnet_core::{Error, Result};

use super::proto::*;

/// Most bytes of a prototxt: the longest published ones have a few hundred thousand.
const MAX_BYTES: usize = 4 << 20;
/// Most fields of a prototxt, and most values of a repeated one: what they become takes up to a thousand bytes each.
const MAX_FIELDS: usize = 1 << 16;
const MAX_REPEATED: usize = 1 << 13;
/// Most messages inside each other; a network's have four.
const MAX_DEPTH: usize = 32;

/// The network that a prototxt describes. Values of weights are not read.
pub fn parse(text: &str) -> Result<NetParameter> {
    if text.len() > MAX_BYTES {
        return Err(Error::Network(format!(
            "expected a prototxt of at most {} MiB, found {} bytes",
            MAX_BYTES >> 20,
            text.len()
        )));
    }
    let mut net = NetParameter::default();
    let mut text = Text { text, at: 0, fields: 0, depth: 0 };
    text.fields(None, &mut |name, text| net.field(name, text))?;
    Ok(net)
}

/// A message whose fields are known by name.
trait Message: Default {
    /// Reads the value of the field `name`, with the colon before it; false if there is no such field.
    fn field(&mut self, name: &str, text: &mut Text<'_>) -> Result<bool>;
}

/// For each message its fields: `one` value or `many`, one `message` or many `messages`, `names` of an enum.
macro_rules! messages {
    ($($message:ident { $($kind:ident $field:ident $(of $values:ty)?),* })*) => {$(
        impl Message for $message {
            fn field(&mut self, name: &str, text: &mut Text<'_>) -> Result<bool> {
                $(if name == stringify!($field).trim_start_matches("r#") {
                    text.$kind(&mut self.$field $(, |name| Some(<$values>::from_str_name(name)? as i32))?)?;
                    return Ok(true);
                })*
                Ok(false)
            }
        }
    )*};
}

messages! {
    NetParameter {
        one name, messages layers, many input, many input_dim, messages input_shape, messages layer
    }
    BlobShape { many dim }
    NetStateRule {
        names phase of Phase, one min_level, one max_level, many stage, many not_stage
    }
    LayerParameter {
        one name, one r#type, many bottom, many top, messages include, messages exclude,
        message transform_param, message convolution_param, message data_param,
        message dropout_param, message dummy_data_param, message image_data_param,
        message inner_product_param, message lrn_param, message memory_data_param,
        message pooling_param, message relu_param, message reshape_param, message flatten_param,
        message batch_norm_param, message bias_param, message scale_param, message input_param
    }
    V1LayerParameter {
        message layer, many bottom, many top, one name, names r#type of v1_layer_parameter::LayerType,
        messages include, messages exclude, message transform_param, message convolution_param,
        message data_param, message dropout_param, message dummy_data_param,
        message image_data_param, message inner_product_param, message lrn_param,
        message memory_data_param, message pooling_param, message relu_param
    }
    V0LayerParameter { one name }
    TransformationParameter {
        one scale, one mirror, one crop_size, one mean_file, many mean_value
    }
    ConvolutionParameter {
        one num_output, one bias_term, many pad, many kernel_size, one group, many stride,
        one pad_h, one pad_w, one kernel_h, one kernel_w, one stride_h, one stride_w, one axis,
        many dilation
    }
    DataParameter { one scale, one mean_file, one crop_size }
    DropoutParameter { one dropout_ratio }
    DummyDataParameter { many num, many channels, many height, many width, messages shape }
    ImageDataParameter {
        one scale, one mean_file, one crop_size, one new_height, one new_width
    }
    InnerProductParameter { one num_output, one bias_term, one axis, one transpose }
    LrnParameter {
        one local_size, one alpha, one beta, names norm_region of lrn_parameter::NormRegion, one k
    }
    MemoryDataParameter { one channels, one height, one width }
    PoolingParameter {
        names pool of pooling_parameter::PoolMethod, one kernel_size, one stride, one pad,
        one kernel_h, one kernel_w, one stride_h, one stride_w, one pad_h, one pad_w,
        one global_pooling, names round_mode of pooling_parameter::RoundMode
    }
    ReLuParameter { one negative_slope }
    ReshapeParameter { message shape, one axis, one num_axes }
    FlattenParameter { one axis, one end_axis }
    BatchNormParameter { one use_global_stats, one eps }
    BiasParameter { one axis }
    ScaleParameter { one axis, one bias_term }
    InputParameter { messages shape }
}

/// A value as it is written.
enum Token<'a> {
    /// A number, with its sign, or a name.
    Word(&'a str),
    Quoted(String),
}

/// What a value can be read as.
trait Value: Sized {
    const WHAT: &str;
    fn of(token: &Token<'_>) -> Option<Self>;
}

impl Value for String {
    const WHAT: &str = "text in quotes";
    fn of(token: &Token<'_>) -> Option<Self> {
        match token {
            Token::Quoted(text) => Some(text.clone()),
            Token::Word(_) => None,
        }
    }
}

impl Value for i64 {
    const WHAT: &str = "a whole number";
    fn of(token: &Token<'_>) -> Option<Self> {
        let Token::Word(word) = token else { return None };
        let (sign, digits) = match word.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", *word),
        };
        let (digits, radix) = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
            Some(digits) => (digits, 16),
            None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
            None => (digits, 10),
        };
        // `from_str_radix` takes a sign of its own.
        let unsigned = !digits.starts_with(['+', '-']);
        unsigned.then(|| i64::from_str_radix(&format!("{sign}{digits}"), radix).ok())?
    }
}

impl Value for i32 {
    const WHAT: &str = "a whole number of 32 bits";
    fn of(token: &Token<'_>) -> Option<Self> {
        i64::of(token)?.try_into().ok()
    }
}

impl Value for u32 {
    const WHAT: &str = "a whole number from 0 to 4294967295";
    fn of(token: &Token<'_>) -> Option<Self> {
        i64::of(token)?.try_into().ok()
    }
}

impl Value for f32 {
    const WHAT: &str = "a number";
    fn of(token: &Token<'_>) -> Option<Self> {
        let Token::Word(word) = token else { return None };
        // `1.f` is one too, but `inf` ends in no suffix.
        let number = match word.strip_suffix(['f', 'F']) {
            Some(number) if number.ends_with(|c: char| c.is_ascii_digit() || c == '.') => number,
            _ => word,
        };
        number.parse().ok()
    }
}

impl Value for bool {
    const WHAT: &str = "true or false";
    fn of(token: &Token<'_>) -> Option<Self> {
        match token {
            Token::Word("true" | "True" | "t" | "1") => Some(true),
            Token::Word("false" | "False" | "f" | "0") => Some(false),
            _ => None,
        }
    }
}

/// A prototxt and how far it has been read.
struct Text<'a> {
    text: &'a str,
    at: usize,
    fields: usize,
    depth: usize,
}

impl<'a> Text<'a> {
    fn error(&self, expected: impl std::fmt::Display) -> Error {
        let line =
            1 + self.text.as_bytes()[..self.at].iter().filter(|&&byte| byte == b'\n').count();
        let rest: String = self.text[self.at..].chars().take(20).collect();
        let found = match rest.is_empty() {
            true => "the end".to_owned(),
            false => format!("{rest:?}"),
        };
        Error::Network(format!("prototxt, line {line}: expected {expected}, found {found}"))
    }

    /// The next byte that is neither space nor comment.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            match byte {
                b'#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find('\n').unwrap_or(rest.len());
                }
                b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                _ => return Some(byte),
            }
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// A run of what names and numbers are made of; may be empty.
    fn word(&mut self) -> &'a str {
        self.peek();
        let rest = &self.text[self.at..];
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-');
        let word = &rest[..rest.find(|c| !part(c)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// Fields up to the bracket `close`, or to the end; what `known` returns false for is skipped.
    fn fields(
        &mut self,
        close: Option<u8>,
        known: &mut dyn FnMut(&str, &mut Text<'a>) -> Result<bool>,
    ) -> Result<()> {
        loop {
            match (self.peek(), close) {
                (None, None) => return Ok(()),
                (Some(byte), Some(end)) if byte == end => {
                    self.at += 1;
                    return Ok(());
                }
                _ => {}
            }
            let start = self.at;
            // The name of an extension is in brackets.
            let extension = self.take(b'[');
            let name = self.word();
            if name.is_empty() || extension && !self.take(b']') {
                self.at = start;
                return Err(self.error("the name of a field"));
            }
            self.fields += 1;
            if self.fields > MAX_FIELDS {
                return Err(self.error(format!("at most {MAX_FIELDS} fields")));
            }
            if extension || !known(name, self)? {
                self.skip()?;
            }
            while self.take(b';') || self.take(b',') {}
        }
    }

    /// A message in brackets, after a colon or none.
    fn nested(&mut self, known: &mut dyn FnMut(&str, &mut Text<'a>) -> Result<bool>) -> Result<()> {
        self.take(b':');
        let close = match self.peek() {
            Some(b'{') => b'}',
            Some(b'<') => b'>',
            _ => return Err(self.error("{")),
        };
        if self.depth == MAX_DEPTH {
            return Err(self.error(format!("at most {MAX_DEPTH} messages inside each other")));
        }
        self.at += 1;
        self.depth += 1;
        self.fields(Some(close), known)?;
        self.depth -= 1;
        Ok(())
    }

    /// The value of a field that is not ours.
    fn skip(&mut self) -> Result<()> {
        let colon = self.take(b':');
        match self.peek() {
            Some(b'{' | b'<') => self.nested(&mut |_, _| Ok(false)),
            Some(b'[') if colon => self.list(&mut |text| match text.peek() {
                Some(b'{' | b'<') => text.nested(&mut |_, _| Ok(false)),
                _ => text.token().map(drop),
            }),
            _ if colon => self.token().map(drop),
            _ => Err(self.error(": or {")),
        }
    }

    /// Values in square brackets.
    fn list(&mut self, value: &mut dyn FnMut(&mut Text<'a>) -> Result<()>) -> Result<()> {
        self.take(b'[');
        if self.take(b']') {
            return Ok(());
        }
        loop {
            value(self)?;
            if self.take(b']') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.error(", or ]"));
            }
        }
    }

    fn token(&mut self) -> Result<Token<'a>> {
        if let Some(b'"' | b'\'') = self.peek() {
            let mut text = Vec::new();
            while let Some(quote @ (b'"' | b'\'')) = self.peek() {
                self.quoted(quote, &mut text)?;
            }
            // A name of other bytes is one that nothing else has: it is only compared and shown.
            return Ok(Token::Quoted(String::from_utf8_lossy(&text).into_owned()));
        }
        match self.word() {
            "" => Err(self.error("a value")),
            word => Ok(Token::Word(word)),
        }
    }

    /// Text up to the closing quote, without the backslashes of C.
    fn quoted(&mut self, quote: u8, text: &mut Vec<u8>) -> Result<()> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        self.at += 1;
        loop {
            let byte = bytes.get(self.at).copied();
            self.at += 1;
            match byte {
                Some(byte) if byte == quote => return Ok(()),
                Some(b'\\') => {
                    let escaped = bytes.get(self.at).copied();
                    self.at += 1;
                    let digits = |from: usize, most: usize, radix: u32| {
                        let digit = |&&byte: &&u8| (byte as char).is_digit(radix);
                        bytes[from.min(bytes.len())..].iter().take(most).take_while(digit).count()
                    };
                    let (from, count, radix) = match escaped {
                        Some(b'x' | b'X') => (self.at, digits(self.at, 2, 16), 16),
                        Some(b'0'..=b'7') => (self.at - 1, digits(self.at - 1, 3, 8), 8),
                        _ => (self.at, 0, 0),
                    };
                    if count > 0 {
                        let code = u32::from_str_radix(&self.text[from..from + count], radix);
                        text.push(code.expect("digits") as u8);
                        self.at = from + count;
                        continue;
                    }
                    text.push(match escaped {
                        Some(b'n') => b'\n',
                        Some(b'r') => b'\r',
                        Some(b't') => b'\t',
                        Some(byte @ (b'\\' | b'"' | b'\'' | b'?')) => byte,
                        _ => {
                            self.at = start;
                            return Err(self.error("text without unknown escapes"));
                        }
                    });
                }
                Some(b'\n') | None => {
                    self.at = start;
                    return Err(self.error(format!("text that ends in {}", quote as char)));
                }
                Some(byte) => text.push(byte),
            }
        }
    }

    fn value<T: Value>(&mut self) -> Result<T> {
        self.peek();
        let start = self.at;
        let token = self.token()?;
        T::of(&token).ok_or_else(|| {
            self.at = start;
            self.error(T::WHAT)
        })
    }

    fn colon(&mut self) -> Result<()> {
        match self.take(b':') {
            true => Ok(()),
            false => Err(self.error(":")),
        }
    }

    /// The last value counts, as in protobuf.
    fn one<T: Value>(&mut self, field: &mut Option<T>) -> Result<()> {
        self.colon()?;
        *field = Some(self.value()?);
        Ok(())
    }

    fn many<T: Value>(&mut self, field: &mut Vec<T>) -> Result<()> {
        self.colon()?;
        let mut push = |text: &mut Text<'a>| {
            text.has_room(field.len())?;
            field.push(text.value()?);
            Ok(())
        };
        match self.peek() {
            Some(b'[') => self.list(&mut push),
            _ => push(self),
        }
    }

    /// One of an enum's names, or its number.
    fn names(&mut self, field: &mut Option<i32>, of: fn(&str) -> Option<i32>) -> Result<()> {
        self.colon()?;
        self.peek();
        let start = self.at;
        let token = self.token()?;
        let value = match token {
            Token::Word(word) => of(word).or_else(|| i32::of(&token)),
            Token::Quoted(_) => None,
        };
        *field = Some(value.ok_or_else(|| {
            self.at = start;
            self.error("one of the names that Caffe has for this field")
        })?);
        Ok(())
    }

    fn message<M: Message>(&mut self, field: &mut Option<M>) -> Result<()> {
        let message = field.get_or_insert_default();
        self.nested(&mut |name, text| message.field(name, text))
    }

    fn messages<M: Message>(&mut self, field: &mut Vec<M>) -> Result<()> {
        self.has_room(field.len())?;
        let mut message = M::default();
        self.nested(&mut |name, text| message.field(name, text))?;
        field.push(message);
        Ok(())
    }

    fn has_room(&self, len: usize) -> Result<()> {
        match len < MAX_REPEATED {
            true => Ok(()),
            false => Err(self.error(format!("at most {MAX_REPEATED} values of a field"))),
        }
    }
}
