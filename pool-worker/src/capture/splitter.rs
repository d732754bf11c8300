//! Tells marks from text that arrives in pieces of any length.

/// The bytes with which each mark begins.
pub(crate) type Token = [u8; 16];

/// The length of a mark: the token, and the number of the input that begins; 0, if none does.
pub(super) const MARK: usize = size_of::<Token>() + size_of::<u32>();

/// The mark of this input.
pub(super) fn mark(token: &Token, input: u32) -> [u8; MARK] {
    let mut mark = [0; MARK];
    let (front, number) = mark.split_at_mut(size_of::<Token>());
    front.copy_from_slice(token);
    number.copy_from_slice(&input.to_le_bytes());
    mark
}

/// A part of what was written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a [u8]),
    Mark(u32),
}

/// Tells marks from text.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    token: Token,
    /// What may be the beginning of a mark: shorter than one.
    held: Vec<u8>,
}

impl Splitter {
    pub(super) fn new(token: Token) -> Splitter {
        Splitter {
            token,
            held: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn token(&self) -> Token {
        self.token
    }

    /// Passes these bytes on as text and marks, as far as they can be told apart without those that follow.
    pub(super) fn feed(&mut self, bytes: &[u8], mut tell: impl FnMut(Part<'_>)) {
        let mut joined = std::mem::take(&mut self.held);
        let mut text = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined[..]
        };
        let mut from = 0;
        while let Some(at) = text[from..].iter().position(|byte| *byte == self.token[0]) {
            let at = from + at;
            let rest = &text[at..];
            let len = rest.len().min(self.token.len());
            if rest[..len] != self.token[..len] {
                from = at + 1;
                continue;
            }
            if rest.len() < MARK {
                self.held = rest.to_vec();
                text = &text[..at];
                break;
            }
            if at > 0 {
                tell(Part::Text(&text[..at]));
            }
            let (mark, behind) = rest.split_at(MARK);
            let number = mark
                .last_chunk()
                .map_or(0, |bytes| u32::from_le_bytes(*bytes));
            tell(Part::Mark(number));
            text = behind;
            from = 0;
        }
        if !text.is_empty() {
            tell(Part::Text(text));
        }
    }

    /// Returns the bytes that were held as text: nothing follows for now, and marks come in one piece.
    pub(super) fn release(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Clone)]
    enum Told {
        Text(Vec<u8>),
        Mark(u32),
    }

    /// Joins adjacent parts of text.
    fn push(told: &mut Vec<Told>, part: &Part<'_>) {
        match (part, told.last_mut()) {
            (Part::Text(text), Some(Told::Text(before))) => before.extend_from_slice(text),
            (Part::Text(text), _) => told.push(Told::Text(text.to_vec())),
            (Part::Mark(input), _) => told.push(Told::Mark(*input)),
        }
    }

    fn split(token: Token, pieces: &[&[u8]]) -> Vec<Told> {
        let (mut splitter, mut told) = (Splitter::new(token), Vec::new());
        for piece in pieces {
            splitter.feed(piece, |part| push(&mut told, &part));
            assert!(splitter.held.len() < MARK);
        }
        let held = splitter.release();
        if !held.is_empty() {
            push(&mut told, &Part::Text(&held));
        }
        told
    }

    /// A simple implementation to compare with, byte by byte.
    fn model(token: Token, bytes: &[u8]) -> Vec<Told> {
        let (mut told, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            if rest.len() >= MARK && rest.starts_with(&token) {
                let number = rest[token.len()..MARK].try_into().expect("four bytes");
                push(&mut told, &Part::Mark(u32::from_le_bytes(number)));
                at += MARK;
            } else {
                push(&mut told, &Part::Text(&rest[..1]));
                at += 1;
            }
        }
        told
    }

    fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let (mut pieces, mut rest) = (Vec::new(), bytes);
        for cut in cuts {
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        pieces
    }

    /// Marks, beginnings of marks, and other bytes.
    fn written(token: Token) -> impl Strategy<Value = Vec<u8>> {
        let item = prop_oneof![
            any::<u32>().prop_map(move |input| mark(&token, input).to_vec()),
            (any::<u32>(), 0..MARK)
                .prop_map(move |(input, len)| mark(&token, input)[..len].to_vec()),
            prop::collection::vec(0_u8..3, 0..40),
            prop::collection::vec(any::<u8>(), 0..40),
        ];
        prop::collection::vec(item, 0..12).prop_map(|items| items.concat())
    }

    proptest! {
        #[test]
        fn pieces_give_the_same_parts_as_the_whole(
            (token, bytes) in prop::array::uniform16(0_u8..3)
                .prop_flat_map(|token| (Just(token), written(token))),
            cuts in prop::collection::vec(0_usize..50, 0..20),
        ) {
            prop_assert_eq!(split(token, &pieces(&bytes, &cuts)), model(token, &bytes));
        }
    }

    #[test]
    fn what_only_begins_like_a_mark_is_text_when_nothing_follows() {
        let token = [7; 16];
        let begins = &mark(&token, 1)[..MARK - 1];
        assert_eq!(split(token, &[begins]), [Told::Text(begins.to_vec())]);
    }
}
