// Word-level difference of two texts: runs that both have ("same"), that only the first has ("removed") and that only
// the second has ("added"). The texts of same and removed runs make the first text, of same and added the second.
//
// Common words at both ends are cut off; what is left is compared by the longest common subsequence while it is small,
// and else split at the words that each side has exactly once (patience difference), which keeps long texts quick.

const TABLE_CELLS = 4_000_000;

// Words and signs, each with the blanks that follow it; blanks at the very start follow an empty word.
function words(text) {
  const found = text.matchAll(/([\p{L}\p{M}\p{N}_]+|[^\s\p{L}\p{M}\p{N}_]|^(?=\s))(\s*)/gu);
  return [...found].map(([, word, blanks]) => [word, blanks]);
}

// Pairs of places [i, j] of a longest common subsequence of a[a0..a1) and b[b0..b1), by the table of lengths.
function commonSubsequence(a, a0, a1, b, b0, b1) {
  const width = b1 - b0 + 1;
  const length = new Uint16Array((a1 - a0 + 1) * width);
  for (let i = a1 - a0 - 1; i >= 0; i--) {
    for (let j = b1 - b0 - 1; j >= 0; j--) {
      const below = length[(i + 1) * width + j];
      const right = length[i * width + j + 1];
      length[i * width + j] =
        a[a0 + i] === b[b0 + j] ? length[(i + 1) * width + j + 1] + 1 : below > right ? below : right;
    }
  }
  const pairs = [];
  for (let i = 0, j = 0; i < a1 - a0 && j < b1 - b0; ) {
    if (a[a0 + i] === b[b0 + j]) pairs.push([a0 + i++, b0 + j++]);
    else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) i++;
    else j++;
  }
  return pairs;
}

// Pairs of places of the words that stand exactly once in either part.
function uniquePairs(a, a0, a1, b, b0, b1) {
  const places = new Map();
  for (let i = a0; i < a1; i++) places.set(a[i], places.has(a[i]) ? null : { i, j: -1, seen: 0 });
  for (let j = b0; j < b1; j++) {
    const place = places.get(b[j]);
    if (place) {
      place.j = j;
      place.seen++;
    }
  }
  return [...places.values()].filter((place) => place && place.seen === 1).map((place) => [place.i, place.j]);
}

// The longest part of the pairs, sorted by i, in which j rises too.
function longestRising(pairs) {
  const piles = [];
  const before = new Array(pairs.length).fill(-1);
  pairs.forEach((pair, at) => {
    let low = 0;
    let high = piles.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (pairs[piles[middle]][1] < pair[1]) low = middle + 1;
      else high = middle;
    }
    if (low > 0) before[at] = piles[low - 1];
    piles[low] = at;
  });
  const rising = [];
  for (let at = piles.at(-1) ?? -1; at >= 0; at = before[at]) rising.push(pairs[at]);
  return rising.reverse();
}

// Calls same(i, j) for every pair of words that match, in order.
function match(a, a0, a1, b, b0, b1, same) {
  while (a0 < a1 && b0 < b1 && a[a0] === b[b0]) same(a0++, b0++);
  let tail = 0;
  while (a0 < a1 - tail && b0 < b1 - tail && a[a1 - tail - 1] === b[b1 - tail - 1]) tail++;
  a1 -= tail;
  b1 -= tail;
  if ((a1 - a0) * (b1 - b0) <= TABLE_CELLS) {
    for (const [i, j] of commonSubsequence(a, a0, a1, b, b0, b1)) same(i, j);
  } else {
    const anchors = longestRising(uniquePairs(a, a0, a1, b, b0, b1));
    for (const [i, j] of anchors) {
      match(a, a0, i, b, b0, j, same);
      same(i, j);
      [a0, b0] = [i + 1, j + 1];
    }
    if (anchors.length) match(a, a0, a1, b, b0, b1, same);
  }
  for (let k = 0; k < tail; k++) same(a1 + k, b1 + k);
}

// Runs of [kind, text] as one run for each stretch of a kind; between two same runs what is removed comes first.
function joined(pieces) {
  const runs = [];
  let [removed, added] = ["", ""];
  const flush = () => {
    if (removed) runs.push({ kind: "removed", text: removed });
    if (added) runs.push({ kind: "added", text: added });
    [removed, added] = ["", ""];
  };
  for (const [kind, text] of pieces) {
    if (!text) continue;
    if (kind === "removed") removed += text;
    else if (kind === "added") added += text;
    else {
      flush();
      if (runs.at(-1)?.kind === "same") runs.at(-1).text += text;
      else runs.push({ kind, text });
    }
  }
  flush();
  return runs;
}

export function difference(before, after) {
  const a = words(before);
  const b = words(after);
  const pieces = [];
  let [i, j] = [0, 0];
  const changedUpTo = (nextI, nextJ) => {
    for (; i < nextI; i++) pieces.push(["removed", a[i].join("")]);
    for (; j < nextJ; j++) pieces.push(["added", b[j].join("")]);
  };
  const same = (nextI, nextJ) => {
    changedUpTo(nextI, nextJ);
    const [[word, blanks], [, others]] = [a[i++], b[j++]];
    pieces.push(["same", word]);
    if (blanks === others) pieces.push(["same", blanks]);
    else pieces.push(["removed", blanks], ["added", others]);
  };
  const bare = (tokens) => tokens.map((token) => token[0]);
  match(bare(a), 0, a.length, bare(b), 0, b.length, same);
  changedUpTo(a.length, b.length);
  return joined(pieces);
}
