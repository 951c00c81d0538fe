//! Columns of fixed width, for a console that has 80 of them and no memory to spare.

use core::fmt::{self, Display, Write};

use Align::{Left, Right};

/// Where the text of a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// At the left: words.
    Left,
    /// At the right: numbers.
    Right,
}

/// One column: its heading, width in characters, and alignment.
pub type Column = (&'static str, usize, Align);

/// Characters that a UEFI text console has in a line in its first mode, which every one has. A
/// line that fills them all would be broken by some.
pub const CONSOLE_WIDTH: usize = 80;

/// Columns with one space between them.
#[derive(Clone, Copy, Debug)]
pub struct Table<const N: usize>(pub [Column; N]);

impl<const N: usize> Table<N> {
    /// Characters of a line.
    #[must_use]
    pub const fn width(&self) -> usize {
        let mut width = N.saturating_sub(1);
        let mut column = 0;
        while column < N {
            width += self.0[column].1;
            column += 1;
        }
        width
    }

    /// Writes the headings.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn head(&self, out: &mut impl Write) -> fmt::Result {
        self.row(
            out,
            self.0
                .each_ref()
                .map(|(heading, ..)| heading as &dyn Display),
        )
    }

    /// Writes a line. What is too long for its column is cut, and ends in `~`.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn row(&self, out: &mut impl Write, cells: [&dyn Display; N]) -> fmt::Result {
        for (number, (cell, (_, width, align))) in cells.into_iter().zip(self.0).enumerate() {
            if number > 0 {
                out.write_char(' ')?;
            }
            let mut length = Length(0);
            write!(length, "{cell}")?;
            let spaces = width.saturating_sub(length.0);
            let last = number + 1 == N;
            if align == Right {
                pad(out, spaces)?;
            }
            let fits = length.0 <= width;
            let room = if fits { width } else { width.saturating_sub(1) };
            write!(Cut { out, room }, "{cell}")?;
            if !fits {
                out.write_char('~')?;
            }
            // Nothing behind the last word.
            if align == Left && !last {
                pad(out, spaces)?;
            }
        }
        out.write_char('\n')
    }
}

fn pad(out: &mut impl Write, spaces: usize) -> fmt::Result {
    for _ in 0..spaces {
        out.write_char(' ')?;
    }
    Ok(())
}

/// Writes text in lines of fewer than [`CONSOLE_WIDTH`] characters, broken at spaces; lines behind
/// the first are indented by two.
///
/// # Errors
///
/// Those of `out`.
pub fn wrapped(out: &mut impl Write, text: &str) -> fmt::Result {
    let mut at = 0;
    for word in text.split_ascii_whitespace() {
        let len = word.chars().count();
        if at > 0 && at + 1 + len < CONSOLE_WIDTH {
            write!(out, " {word}")?;
            at += 1 + len;
        } else {
            out.write_str(if at > 0 { "\n  " } else { "" })?;
            out.write_str(word)?;
            at = len + if at > 0 { 2 } else { 0 };
        }
    }
    out.write_char('\n')
}

/// Counts the characters.
struct Length(usize);

impl Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.chars().count();
        Ok(())
    }
}

/// Lets so many characters through.
struct Cut<'a, W> {
    out: &'a mut W,
    room: usize,
}

impl<W: Write> Write for Cut<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if self.room == 0 {
                break;
            }
            self.room -= 1;
            self.out.write_char(letter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    #[test]
    fn columns_line_up_whatever_is_in_them() {
        let table = Table([("name", 6, Left), ("count", 5, Right), ("why", 8, Left)]);
        assert_eq!(table.width(), 21);
        let mut out = String::new();
        table.head(&mut out).unwrap();
        table.row(&mut out, [&"ab", &7, &"fine"]).unwrap();
        table
            .row(
                &mut out,
                [&"abcdefgh", &1_234_567, &format_args!("{:>4}|{}", 1, 2)],
            )
            .unwrap();
        assert_eq!(
            out,
            "name   count why\n\
             ab         7 fine\n\
             abcde~ 1234~    1|2\n"
        );
    }

    #[test]
    fn long_text_is_broken_at_spaces() {
        let mut out = String::new();
        let words = "word ".repeat(40);
        wrapped(&mut out, &words).unwrap();
        assert!(out.lines().all(|line| line.len() < CONSOLE_WIDTH));
        assert!(out.lines().skip(1).all(|line| line.starts_with("  w")));
        assert_eq!(out.split_whitespace().count(), 40);
        assert_eq!(out.lines().count(), 3, "{out}");
    }
}
