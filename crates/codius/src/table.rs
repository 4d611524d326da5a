//! Columns of plain text. On a terminal a line of names stands above them; a program that reads them
//! gets the lines alone, and JSON if it asks.

use std::{
    fmt,
    io::{IsTerminal, stdout},
};

/// Blanks between two columns.
const GAP: usize = 2;

/// Lines of as many cells as there are columns.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    lines: Vec<Vec<String>>,
}

impl Table {
    /// A table whose names are shown on a terminal.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let mut table = Self::default();
        if stdout().is_terminal() {
            table.line(columns.iter().map(|column| (*column).to_owned()).collect());
        }
        table
    }

    pub(crate) fn line(&mut self, cells: Vec<String>) {
        self.lines.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths: Vec<usize> = Vec::new();
        for line in &self.lines {
            for (column, cell) in line.iter().enumerate() {
                let width = cell.chars().count();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        for line in &self.lines {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                text += &format!("{cell:<width$}{:GAP$}", "");
            }
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::default();
        table.line(vec!["a".into(), "bbb".into(), "c".into()]);
        table.line(vec!["aéa".into(), String::new(), "cc".into()]);
        assert_eq!(table.to_string(), "a    bbb  c\naéa       cc\n");
    }
}
