import type { Expr } from './expr.ts'
import { type Program, program } from './program.ts'

/** A program whose numbers have names. */
export interface NamedProgram<N extends string = string> extends Program {
  /** The names of its numbers, in the program's order. */
  readonly order: readonly N[]
  /** The numbers of a call in the program's order, as `applyProgram` and the like take them. */
  readonly numbers: (values: Readonly<Record<N, number>>) => number[]
}

/**
 * An elementwise operator as data, like `program`, with names for its inputs and for the numbers that a call brings:
 * neither is found by its position.
 *
 * @param build gets an expression for each input and each number, and returns the output's expression, or a list with one
 * for each output. It runs at the program's first use.
 * @example
 * const STEP = namedProgram('step', ['p', 'g'], ['lr', 'decay'], ({ p, g }, { lr, decay }) =>
 *   expr.sub(p, expr.mul(lr, expr.add(g, expr.mul(decay, p)))),
 * )
 * const [p, g] = [tensor([1, 2]), tensor([10, 10])]
 * applyProgram(STEP, [p, g], STEP.numbers({ lr: 0.1, decay: 0 })).dataSync() // → 0,1
 */
// What is not used can be left out of a bundle: calling it has no effect of its own.
/* @__NO_SIDE_EFFECTS__ */
export function namedProgram<const I extends readonly string[], const N extends readonly string[]>(
  name: string,
  inputs: I,
  numbers: N,
  build: (
    inputs: Readonly<Record<I[number], Expr>>,
    numbers: Readonly<Record<N[number], Expr>>,
  ) => Expr | readonly Expr[],
): NamedProgram<N[number]> {
  const order: readonly N[number][] = numbers
  const named = <K extends string>(names: readonly K[], exprs: readonly Expr[]): Record<K, Expr> =>
    Object.fromEntries(names.map((key, i) => [key, exprs[i]])) as Record<K, Expr>
  return Object.assign(
    program(
      name,
      inputs.length,
      (tensors, values) => build(named<I[number]>(inputs, tensors), named(order, values)),
      numbers.length,
    ),
    { order, numbers: (values: Readonly<Record<N[number], number>>) => order.map((key) => values[key]) },
  )
}
