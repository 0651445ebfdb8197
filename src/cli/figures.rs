//! Figures and tables for people.

/// Columns: the first to the left, the others to the right, two spaces between them.
pub struct Table {
    rows: Vec<Vec<String>>,
    /// Which columns are flush left.
    left: Vec<usize>,
}

impl Table {
    /// With a row of titles; `left` lists the columns that are flush left.
    pub fn new(titles: &[&str], left: &[usize]) -> Table {
        Table { rows: vec![titles.iter().map(|t| t.to_string()).collect()], left: left.to_vec() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = widths[column];
                if self.left.contains(&column) {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_flush() {
        let mut table = Table::new(&["name", "n"], &[0]);
        table.row(["a".into(), "100".into()]);
        table.row(["long name".into(), "2".into()]);
        assert_eq!(table.to_string(), "name         n\na          100\nlong name    2\n");
    }
}
