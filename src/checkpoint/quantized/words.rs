//! Codes in words of 32 bits, the lowest bits first, on their way to rows of the engine's: two of four bits in a byte, or a byte each.

/// AWQ's order of the outputs in a word.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// GPTQ: `[K / n, N]` words of `n` columns as rows, a word's bytes side by side.
pub(super) fn transposed(words: &[u8], (rows, columns): (usize, usize)) -> Vec<u8> {
    let words = words.as_chunks::<4>().0;
    let mut out = vec![[0_u8; 4]; rows * columns];
    // Blocks, so that neither side walks through all of memory for each of its rows.
    const BLOCK: usize = 32;
    for first_row in (0..rows).step_by(BLOCK) {
        for column in 0..columns {
            for row in first_row..rows.min(first_row + BLOCK) {
                out[row * columns + column] = words[column * rows + row];
            }
        }
    }
    out.into_flattened()
}

/// AWQ: `[K, N / 8]` words as rows of four bits.
pub(super) fn awq_rows(words: &[u8], (rows, columns): (usize, usize)) -> Vec<u8> {
    let (in_row, row_bytes) = (rows.div_ceil(8), columns.div_ceil(2));
    let words = words.as_chunks::<4>().0;
    let mut out = vec![0_u8; rows * row_bytes];
    for column in 0..columns {
        for (at, word) in words[column * in_row..][..in_row].iter().enumerate() {
            let word = u32::from_le_bytes(*word);
            for (nibble, output) in AWQ_ORDER.iter().enumerate() {
                let row = at * 8 + output;
                if row < rows {
                    let code = (word >> (4 * nibble) & 15) as u8;
                    out[row * row_bytes + column / 2] |= code << (column % 2 * 4);
                }
            }
        }
    }
    out
}

/// Number `index` of a line of codes of `bits` that are packed into words; `order` of them in a word.
pub(super) fn code_at(words: &[u8], bits: u32, index: usize) -> u8 {
    let in_byte = 8 / bits as usize;
    let byte = words[index / in_byte];
    if bits == 8 { byte } else { byte >> (index % in_byte * 4) & 15 }
}

/// Where AWQ keeps output `index` of a line.
pub(super) fn awq_index(index: usize) -> usize {
    let position = AWQ_ORDER.iter().position(|output| *output == index % 8);
    index / 8 * 8 + position.unwrap_or(0)
}

/// Words whose codes were kept one less, by taking one of each from the word as a whole: 0 borrows from the next. What was taken so comes
/// back so, as in GPTQModel, which `transformers` reads such files with.
pub(super) fn words_plus_one(words: &[u8], bits: u32) -> Vec<u8> {
    let ones: u32 = if bits == 8 { 0x0101_0101 } else { 0x1111_1111 };
    let plus_one = |word: &[u8; 4]| u32::from_le_bytes(*word).wrapping_add(ones).to_le_bytes();
    words.as_chunks().0.iter().flat_map(plus_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_points_of_gptqs_first_format_come_back_whatever_they_are() {
        for (bits, ones, zeros) in
            [(4, 0x1111_1111, 0x0f80_7001_u32), (8, 0x0101_0101, 0x00ff_0080), (4, 0x1111_1111, 0)]
        {
            let stored = zeros.wrapping_sub(ones).to_le_bytes();
            assert_eq!(words_plus_one(&stored, bits), zeros.to_le_bytes());
        }
    }
}
