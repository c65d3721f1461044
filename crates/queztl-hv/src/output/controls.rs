//! Text of a guest for a terminal: its lines and colours, and nothing that moves the cursor, changes the terminal or asks it
//! something.

/// Most bytes of a colour's sequence; longer ones are not colours.
const MAX_SEQUENCE_BYTES: usize = 32;

/// A filter of a stream; sequences may be split over pieces.
#[derive(Debug, Default)]
pub struct Controls {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and characters from 0x20 to 0x2f.
    Intermediate,
    /// After `ESC [`: what has come of it (ECMA-48 §5.4).
    Sequence(Vec<u8>),
    /// In a string such as a window's title, until BEL or ESC.
    String,
}

impl Controls {
    /// What may be shown of the next piece.
    pub fn keep_colours(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.take(byte, &mut kept);
        }
        kept
    }

    fn take(&mut self, byte: u8, kept: &mut Vec<u8>) {
        const ESCAPE: u8 = 0x1b;
        const BELL: u8 = 7;
        self.state = match std::mem::take(&mut self.state) {
            _ if byte == ESCAPE => State::Escape,
            State::Text => {
                let is_shown = byte >= b' ' && byte != 0x7f || matches!(byte, b'\n' | b'\r' | b'\t');
                kept.extend(is_shown.then_some(byte));
                State::Text
            }
            State::Escape => match byte {
                b'[' => State::Sequence(Vec::new()),
                b']' | b'P' | b'X' | b'^' | b'_' => State::String,
                b' '..=b'/' => State::Intermediate,
                _ => State::Text,
            },
            State::Intermediate if matches!(byte, b' '..=b'/') => State::Intermediate,
            State::Intermediate => State::Text,
            State::Sequence(mut parameters) => match byte {
                b' '..=b'?' => {
                    if parameters.len() < MAX_SEQUENCE_BYTES {
                        parameters.push(byte);
                    }
                    State::Sequence(parameters)
                }
                b'm' if parameters.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b';' | b':')) => {
                    kept.extend(b"\x1b[");
                    kept.extend(parameters);
                    kept.push(b'm');
                    State::Text
                }
                _ => State::Text,
            },
            State::String if byte == BELL => State::Text,
            State::String => State::String,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> String {
        String::from_utf8(Controls::default().keep_colours(text.as_bytes())).unwrap()
    }

    #[test]
    fn lines_and_colours_stay_and_questions_and_titles_go() {
        assert_eq!(kept("a\x1b[31mred\x1b[0m\r\n\u{e9}\t"), "a\x1b[31mred\x1b[0m\r\n\u{e9}\t");
        assert_eq!(kept("# \x1b[6n\x1b[c\x1b[2J\x1b]0;title\x07x\x1b]0;title\x1b\\y\x1b(Bz\x08\x07"), "# xyz");
        assert_eq!(kept("\x1b[?25;m\x1b[>4m"), "");
    }

    #[test]
    fn a_sequence_may_be_split() {
        let mut controls = Controls::default();
        let parts = ["a\x1b", "[6", "nb\x1b[3", "1mc"].map(|part| controls.keep_colours(part.as_bytes()));
        assert_eq!(parts.concat(), b"ab\x1b[31mc");
    }
}
