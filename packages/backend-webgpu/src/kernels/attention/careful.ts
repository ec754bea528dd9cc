/**
 * What is hidden may be NaN or infinite. Its weight is 0, but 0 · NaN is NaN: a kernel whose sums run over keys looks at them
 * when they are done, and where one is not finite starts again, leaving out what has weight 0. So blocks cost nothing more
 * where all is finite.
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention-exact.test.ts.
 */

import { colsOf, each, type Tile, weightAt } from './blocks.ts'

/**
 * Adds a whole block as `sums` does, but leaves out what has weight 0, so that what is hidden may be NaN or infinite.
 * It is slow: one column at a time.
 */
export function carefulSums(
  tile: Tile,
  name: string,
  w: string,
  b: string,
  width4: number,
  swizzled: boolean,
  count: string,
  row?: (column: string, vector: string) => string,
): string {
  const { rm, tx } = tile
  const cols = colsOf(tile)
  const own = width4 / tx
  const place = (c: number): string => {
    const vector = `tx + ${tx * c}u`
    if (row) return row('k', vector)
    return `k * ${width4}u + ${swizzled ? `((${vector}) ^ ((k >> 2u) & 7u))` : vector}`
  }
  return `{ let end = u32(min(${cols}, ${count}));
for (var k = 0u; k < end; k++) {
let iw = ${weightAt(tile, cols, '(k >> 2u)')};
${each(own, (c) => `let b${c} = ${b}[${place(c)}];`)}
${each(
  rm,
  (i) => `{ let w = ${w}[iw + ${(i * cols) / 4}u][k & 3u];
if (!(w == 0.0)) { ${each(own, (c) => `${name}${i}_${c} = fma(vec4f(w), b${c}, ${name}${i}_${c});`)} } }`,
)}
}
}`
}

/** A score that is visible, raised so that its weight, e^(score − largest), is not quite 0, but e^−least: then it counts. */
export const notZero = (score: string, largest: string, least = 87): string =>
  `select(${score}, ${largest} - ${least}.0, ${score} < ${largest} - ${least}.0 && ${score} > p.ninf)`

/** The condition that one of a thread's sums is not finite, judged by bits, since WGSL need not know infinities. */
export const notFinite = (rows: number, vectors: number, name: string): string =>
  Array.from({ length: rows }, (_, i) =>
    Array.from({ length: vectors }, (_, c) => `unbounded(${name}${i}_${c})`).join(' || '),
  ).join(' || ')
export const notFiniteFunction =
  'fn unbounded(x: vec4f) -> bool { return any((bitcast<vec4u>(x) & vec4u(0x7f800000u)) == vec4u(0x7f800000u)); }'

/**
 * Runs `body` once, and where that leaves one of the sums not finite, once more with `careful`: a key that is hidden but not
 * finite was multiplied by its weight 0. Where a visible one is the reason, nothing changes. `tile`: workgroup memory that
 * is free afterwards, by which the threads tell each other.
 */
export const carefully = (body: string, unfinished: string, tile: string): string => `var careful = false;
loop {
${body}
if (careful) { break; }
if (li == 0u) { ${tile}[0] = vec4f(); }
workgroupBarrier();
if (${unfinished}) { ${tile}[0] = vec4f(1.0); }
if (workgroupUniformLoad(&${tile}[0]).x == 0.0) { break; }
careful = true;
}`
