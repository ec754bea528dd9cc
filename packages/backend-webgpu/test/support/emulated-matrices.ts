/**
 * Subgroup matrices and float16 in plain WGSL, for adapters that have neither: the code of kernels is rewritten, and the
 * staging of operands, the order of barriers and what follows a product run as they are.
 */

import type { Gpu } from '../../src/index.ts'

/** The text between a bracket at `open` and the one that closes it. */
function inside(code: string, open: number): string {
  let depth = 0
  for (let i = open; i < code.length; i++) {
    if (code[i] === '[') depth++
    else if (code[i] === ']' && --depth === 0) return code.slice(open + 1, i)
  }
  throw new Error('a bracket that is not closed')
}

/** Replaces each read of an element `name[…]`. */
function reads(code: string, name: string, by: (index: string) => string): string {
  let out = ''
  let rest = code
  for (let at = rest.search(new RegExp(`\\b${name}\\[`)); at >= 0; ) {
    const open = at + name.length
    const index = inside(rest, open)
    out += rest.slice(0, at) + by(index)
    rest = rest.slice(open + index.length + 2)
    at = rest.search(new RegExp(`\\b${name}\\[`))
  }
  return out + rest
}

/** The code of float16 as that of words with two of them each. */
function halves(code: string): string {
  const functions: string[] = []
  const binding = /var<storage, (read|read_write)> (\w+): array<(f16|vec4<f16>)>;/g
  const found = [...code.matchAll(binding)].map(([, mode, name, item]) => ({ mode, name, item }) as Bound)
  for (const { mode, name, item } of found) {
    const wide = item !== 'f16'
    const word = mode === 'read' ? (wide ? 'vec2<u32>' : 'u32') : wide ? 'vec2<u32>' : 'atomic<u32>'
    code = code.replace(`${name}: array<${item}>;`, `${name}: array<${word}>;`)
    if (mode === 'read') {
      functions.push(
        wide
          ? `fn of_${name}(i: i32) -> vec4<f32> { let w = ${name}[i]; return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)); }`
          : `fn of_${name}(i: i32) -> f32 { return unpack2x16float(${name}[i >> 1u])[i & 1]; }`,
      )
      code = reads(code, name, (index) => `of_${name}(i32(${index}))`)
    } else if (wide)
      code = code.replace(
        new RegExp(`\\b${name}\\[(.*)\\] = vec4<f16>\\((.*)\\);`, 'g'),
        `{ let all = vec4<f32>($2); ${name}[$1] = vec2<u32>(pack2x16float(all.xy), pack2x16float(all.zw)); }`,
      )
    else {
      functions.push(`fn to_${name}(i: i32, x: f32) {
let bits = pack2x16float(vec2<f32>(x, 0.0)); let at = u32(i & 1) * 16u;
atomicAnd(&${name}[i >> 1u], ~(0xffffu << at)); atomicOr(&${name}[i >> 1u], bits << at);
}`)
      code = code.replace(new RegExp(`\\b${name}\\[(.*)\\] = f16\\((.*)\\); }`, 'g'), `to_${name}($1, $2); }`)
    }
  }
  return `${code
    .replace(/bitcast<u32>\(vec2<f16>\(/g, 'pack2x16float(vec2<f32>(')
    .replace(/\bf16\b/g, 'f32')}\n${functions.join('\n')}`
}

interface Bound {
  readonly mode: 'read' | 'read_write'
  readonly name: string
  readonly item: 'f16' | 'vec4<f16>'
}

/**
 * A thread computes half a row of its subgroup's results: it keeps a whole row of a matrix on the left, and of one on the
 * right the columns that it needs.
 */
const matrices = (subgroup: number): string => `
struct Left { w: array<vec4<u32>, 2> }
struct Right { w: array<vec4<u32>, 16> }
alias Sum = mat2x4<f32>;
var<workgroup> shuffled: array<u32, 256>;
fn shuffle_xor(li: u32, x: u32, mask: u32) -> u32 {
shuffled[li] = x;
workgroupBarrier();
let y = shuffled[li ^ mask];
workgroupBarrier();
return y;
}
fn half_at(at: i32) -> u32 { let w = s[at >> 3u][(at >> 1u) & 3]; return select(w & 0xffffu, w >> 16u, (at & 1) == 1); }
fn column(offset: i32, stride: i32) -> vec4<u32> {
var w: vec4<u32>;
for (var i = 0; i < 4; i++) { w[i] = half_at(offset + 2 * i * stride) | (half_at(offset + (2 * i + 1) * stride) << 16u); }
return w;
}
fn load_left_row_major(li: u32, offset: i32, stride: i32) -> Left {
let row = offset + i32(li % ${subgroup}u / 2u) * stride;
return Left(array(s[row], s[row + 1]));
}
fn load_left_col_major(li: u32, offset: i32, stride: i32) -> Left {
let row = 8 * offset + i32(li % ${subgroup}u / 2u);
return Left(array(column(row, 8 * stride), column(row + 64 * stride, 8 * stride)));
}
fn load_right_row_major(li: u32, offset: i32, stride: i32) -> Right {
var m: Right;
for (var k = 0; k < 16; k++) { m.w[k] = s[offset + k * stride + i32(li & 1u)]; }
return m;
}
fn load_right_col_major(li: u32, offset: i32, stride: i32) -> Right {
var m: Right;
for (var k = 0; k < 16; k++) { m.w[k] = column(8 * offset + k + i32(li & 1u) * 64 * stride, 8 * stride); }
return m;
}
fn multiply_add(left: Left, right: Right, sum: Sum) -> Sum {
var m = sum; var l = left; var r = right;
for (var k = 0; k < 16; k++) {
let x = unpack2x16float(l.w[k >> 3u][(k >> 1u) & 3])[k & 1];
let w = r.w[k];
m[0] += x * vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
m[1] += x * vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w));
}
return m;
}
fn store_rows(li: u32, offset: i32, m: Sum, stride: i32) {
let at = offset + i32(li % ${subgroup}u / 2u) * stride + 2 * i32(li & 1u);
s[at] = bitcast<vec4<u32>>(m[0]); s[at + 1] = bitcast<vec4<u32>>(m[1]);
}`

/** WGSL with subgroup matrices and float16 as plain WGSL. */
export function emulated(code: string, subgroup: number): string {
  const isMatrices = code.includes('subgroup_matrix')
  if (!/\bf16\b/.test(code)) return code
  let plain = code
    .replace(/enable (f16|\w*subgroup_matrix);\n/g, '')
    .replace(/diagnostic\(off, [\w.]*subgroup_matrix_uniformity\);\n/g, '')
  if (isMatrices)
    plain = plain
      .replace(/enable subgroups;\n/g, '')
      .replace(/alias (Left|Right|Sum) = .*;\n/g, '')
      .replace(/subgroupMatrixLoad<Left, (\w+)>\(&s, /g, 'load_left_$1(li, ')
      .replace(/subgroupMatrixLoad<Right, (\w+)>\(&s, /g, 'load_right_$1(li, ')
      .replace(/subgroupMatrixMultiplyAccumulate/g, 'multiply_add')
      .replace(/subgroupShuffleXor\(/g, 'shuffle_xor(li, ')
      .replace(/subgroupMatrixStore<row_major>\(&s, (.*)\);/g, 'store_rows(li, $1);')
  return `${halves(plain)}\n${isMatrices ? matrices(subgroup) : ''}`
}

/** A GPU that says it has subgroup matrices, and emulates them. */
export const emulating = (gpu: Gpu, subgroup = 32): Gpu =>
  overlaid(gpu, subgroup, (code) => emulated(code, subgroup))

function overlaid(gpu: Gpu, subgroup: number, rewrite: (code: string) => string): Gpu {
  const device = replaced(gpu.device, {
    createShaderModule: (descriptor: GPUShaderModuleDescriptor) =>
      gpu.device.createShaderModule({ ...descriptor, code: rewrite(descriptor.code) }),
  })
  const matrices = { enables: ['f16', 'subgroups', 'chromium_experimental_subgroup_matrix'], subgroup }
  return replaced(gpu, { device, matrices })
}

/** An object with some properties replaced. Its methods run on the object itself: they may need what is private. */
const replaced = <T extends object>(target: T, own: Partial<T>): T =>
  new Proxy(target, {
    get(_, name) {
      const value = Reflect.get(name in own ? own : target, name)
      return typeof value === 'function' && !(name in own) ? value.bind(target) : value
    },
  })

/** A GPU of Dawn's null device that judges code for matrices, but not how much workgroup memory it takes. */
export function judging(gpu: Gpu, subgroup = 32): Gpu {
  return overlaid(gpu, subgroup, (code) => code.replace(/(var<workgroup> s: array<vec4<u32>, )\d+/, '$11024'))
}
