//! Tables that fit a terminal of 80 columns.

/// How a column is set.
#[derive(Clone, Copy)]
pub enum Column {
    /// Text; cut to this many characters, the end replaced by `…`.
    Left(&'static str, usize),
    /// Numbers.
    Right(&'static str),
}

/// The rows under their headings; a sentence if there are none.
pub fn render(columns: &[Column], rows: &[Vec<String>], none: &str) -> String {
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let headings: Vec<String> = columns
        .iter()
        .map(|column| match column {
            Column::Left(name, _) | Column::Right(name) => (*name).to_owned(),
        })
        .collect();
    let cut = |(column, text): (&Column, &String)| {
        let text = printable(text);
        match column {
            Column::Left(_, width) if text.chars().count() > *width => {
                text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
            }
            _ => text,
        }
    };
    let lines: Vec<Vec<String>> = std::iter::once(&headings)
        .chain(rows)
        .map(|row| columns.iter().zip(row).map(cut).collect())
        .collect();
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        for ((column, cell), width) in columns.iter().zip(line).zip(&widths) {
            if !text.is_empty() {
                text.push_str("  ");
            }
            let padding = " ".repeat(width - cell.chars().count());
            match column {
                Column::Left(..) => text.extend([cell.as_str(), &padding]),
                Column::Right(_) => text.extend([padding.as_str(), cell]),
            }
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

/// Names are whatever programs gave: a line feed would break the table, an escape sequence would command the terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_cell_whatever_it_is() {
        let rows = [vec!["two\nlines\u{1b}[31m".to_owned(), "1".to_owned()]];
        let table = render(&[Column::Left("NAME", 30), Column::Right("N")], &rows, "none");
        assert_eq!(table, "NAME                  N\ntwo\\nlines\\u{1b}[31m  1\n");
    }
}
