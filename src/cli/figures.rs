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

/// `12.3 MB` and the like, in powers of 1000.
pub fn bytes(count: u64) -> String {
    scaled(count as f64, "B")
}

/// A count with a decimal prefix and a unit: `6.22 GFLOP`.
pub fn scaled(count: f64, unit: &str) -> String {
    let mut value = count;
    for prefix in ["", "k", "M", "G", "T"] {
        if value < 999.5 {
            let digits = match value {
                _ if prefix.is_empty() => 0,
                ..9.995 => 2,
                ..99.95 => 1,
                _ => 0,
            };
            return format!("{value:.digits$} {prefix}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} P{unit}")
}

/// An integer in groups of three: `35,746,307`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A setting as configurations spell it: `v_prediction`.
pub fn plain(setting: &impl serde::Serialize) -> String {
    match serde_json::to_value(setting) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(35_746_307), "35,746,307");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500), "1.50 kB");
        assert_eq!(bytes(123_456_789), "123 MB");
        assert_eq!(scaled(46.8e9, "FLOP"), "46.8 GFLOP");
    }

    #[test]
    fn columns_are_flush() {
        let mut table = Table::new(&["name", "n"], &[0]);
        table.row(["a".into(), "100".into()]);
        table.row(["long name".into(), "2".into()]);
        assert_eq!(table.to_string(), "name         n\na          100\nlong name    2\n");
    }
}
