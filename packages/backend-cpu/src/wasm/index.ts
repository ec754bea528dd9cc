/**
 * A typed WebAssembly emitter: the language in which every CPU kernel is written. It produces the bytes of a
 * module at run time, in microseconds; TypeScript checks the types of expressions, and TypeScript loops unroll.
 *
 * A whole kernel, y[i] += a · x[i] for rows [start, end):
 *
 * ```ts
 * const m = new ModuleBuilder(pool.features)
 * m.kernel('axpy', (f, start, end, params) => {
 *   const a = f.let(v128.load32Splat(params, 0)) // the parameter block: f32 a, then the addresses of x and y
 *   const x = f.let(i32.load(params, 4))
 *   const y = f.let(i32.load(params, 8))
 *   f.strips(start, end, [16, 4, 1], (i, width) => {
 *     const at = f.let(i.shl(2))
 *     const px = f.let(x.add(at))
 *     const py = f.let(y.add(at))
 *     if (width === 1) {
 *       // Same instructions as above, so that results do not depend on where [start, end) was cut.
 *       f.storeLane(32, py, f32x4.madd(a, v128.load32Zero(px), v128.load32Zero(py)), 0)
 *     } else {
 *       for (let lane = 0; lane < width; lane += 4) {
 *         f.store(py, f32x4.madd(a, v128.load(px, lane * 4), v128.load(py, lane * 4)), lane * 4)
 *       }
 *     }
 *   })
 * })
 * const axpy = pool.compile(m.build(), 'axpy')
 * ```
 *
 * Three rules:
 *
 * 1. *Expressions are descriptions.* `i32.load(p).add(1)` emits nothing until a statement uses it: `f.store`,
 *    `f.let`, `v.set`, a condition …. An expression used twice is emitted and computed twice; `f.let(expr)`
 *    computes it once, there, and gives a variable. A load is performed where it is emitted, so `f.let` also
 *    fixes its place among stores. Variables are free: the engine's register allocator sees SSA form.
 * 2. *Statements are methods of `f`* and of variables, and are emitted in the order in which they are called.
 *    What JavaScript does around them happens at generation time: a `for` loop unrolls, `f.for` emits a loop.
 * 3. *Plain numbers are constants* of the type expected: `i.add(1)`, `f32x4.mul(x, 0.5)` (every lane).
 *
 * Addresses are bytes, as unsigned i32. `f.for`, `f.strips` compare signed: run them over counts, not over
 * addresses, which may lie above 2³¹.
 *
 * Files in reading order: `bytes.ts` (LEB128), `node.ts` (expressions), `scalar-ops.ts`, `vector-ops.ts` (opcode
 * tables), `function.ts` (statements), `module.ts` (sections).
 */

export { type Func, FunctionBuilder, type Label, type Var, type Vars } from './function.ts'
export { kernelParams, ModuleBuilder, type ModuleOptions } from './module.ts'
export type {
  Exprs,
  F32,
  F32In,
  F64,
  F64In,
  I32,
  I32In,
  I64,
  I64In,
  Inputs,
  Node,
  V128,
  ValType,
} from './node.ts'
export { f32, f64, i32, i64 } from './scalar-ops.ts'
export { f32x4, f64x2, i8x16, i16x8, i32x4, i64x2, v128 } from './vector-ops.ts'
