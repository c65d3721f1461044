//! Columns.

use std::fmt;

use super::text::plain;

/// A table whose columns are as wide as they must be; numbers stand at the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(heads: impl IntoIterator<Item = &'static str>) -> Table {
        Table { rows: vec![heads.into_iter().map(str::to_owned).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { plain(&cell) }).collect());
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column| self.rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max();
        (0..columns).map(|column| width(column).unwrap_or(0)).collect()
    }

    /// A column of nothing but numbers (with units).
    fn is_numeric(&self, column: usize) -> bool {
        let cells = || self.rows.iter().skip(1).filter_map(|row| row.get(column));
        let numeric = |cell: &String| cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit());
        let unit = |cell: &String| cell.chars().all(|c| c.is_ascii_alphanumeric() || " .%-/".contains(c));
        cells().all(|cell| numeric(cell) && unit(cell)) && cells().any(|cell| cell != "-" && cell.len() < 12)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let right: Vec<bool> = (0..widths.len()).map(|column| self.is_numeric(column)).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).zip(&right).map(|((cell, &width), &right)| match right {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            writeln!(formatter, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// `name value` lines for one thing; what is empty is left out.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0) + 2;
    let shown = fields.iter().filter(|(_, value)| !value.is_empty());
    shown.map(|(name, value)| format!("{name:<width$}{}\n", plain(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be_and_numbers_stand_at_the_right() {
        let mut table = Table::new(["NAME", "RAM", "NOTE"]);
        table.row(["a".into(), "512 MiB".into(), String::new()]);
        table.row(["longer-name".into(), "2 GiB".into(), "x\x1b[31m".into()]);
        let wanted = "NAME             RAM  NOTE\na            512 MiB  -\nlonger-name    2 GiB  x [31m\n";
        assert_eq!(table.to_string(), wanted);
    }

    #[test]
    fn fields_without_a_value_are_left_out() {
        assert_eq!(fields(&[("a", "1".into()), ("long", String::new()), ("b", "2".into())]), "a     1\nb     2\n");
    }
}
