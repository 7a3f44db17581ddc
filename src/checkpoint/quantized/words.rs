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
