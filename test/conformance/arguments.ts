import type { DType, Operand, Tensor } from '@tilegrad/core'
import { isTensor, Skip, scalarOf, type Value } from './manifest.ts'

/** A call's arguments by PyTorch's names. Reading one of another kind than expected is an error that names it. */
export class Arguments {
  readonly #op: string
  readonly #values: ReadonlyMap<string, Value>

  constructor(op: string, values: ReadonlyMap<string, Value>) {
    this.#op = op
    this.#values = values
  }

  has(name: string): boolean {
    const v = this.#values.get(name)
    return v !== undefined && v !== null
  }

  /** Whether an argument was passed, also as None. */
  given(name: string): boolean {
    return this.#values.has(name)
  }

  get(name: string): Value {
    return this.#values.get(name) ?? null
  }

  #wrong(name: string, expected: string): Error {
    const v = this.get(name)
    return new Error(
      `${this.#op}: argument ${name} is ${isTensor(v) ? v : JSON.stringify(v)}; expected ${expected}`,
    )
  }

  tensor(name: string): Tensor {
    const v = this.get(name)
    if (!isTensor(v)) throw this.#wrong(name, 'a tensor')
    return v
  }

  maybeTensor(name: string): Tensor | null {
    return this.has(name) ? this.tensor(name) : null
  }

  /** A list of tensors; one tensor alone counts as a list of one. */
  tensors(name: string): Tensor[] {
    const v = this.get(name)
    if (isTensor(v)) return [v]
    if (!Array.isArray(v) || !v.every(isTensor)) throw this.#wrong(name, 'a list of tensors')
    return v
  }

  operand(name: string): Operand {
    const v = this.get(name)
    return isTensor(v) ? v : this.number(name)
  }

  maybeOperand(name: string): Operand | null {
    return this.has(name) ? this.operand(name) : null
  }

  number(name: string, otherwise?: number): number {
    const v = this.get(name)
    if (v === null && otherwise !== undefined) return otherwise
    if (typeof v === 'boolean') return Number(v)
    const n = isTensor(v) ? scalarOf(v) : v
    if (typeof n !== 'number') throw this.#wrong(name, 'a number')
    return n
  }

  flag(name: string, otherwise: boolean): boolean {
    const v = this.get(name)
    if (v === null) return otherwise
    if (typeof v !== 'boolean') throw this.#wrong(name, 'true or false')
    return v
  }

  text(name: string, otherwise: string): string {
    const v = this.get(name)
    if (v === null) return otherwise
    if (typeof v !== 'string') throw this.#wrong(name, 'a string')
    return v
  }

  /** A list of numbers; one number alone counts as a list of one. */
  numbers(name: string): number[] {
    const v = this.get(name)
    if (!Array.isArray(v)) return [this.number(name)]
    return v.map((n) => {
      const m = isTensor(n) ? scalarOf(n) : n
      if (typeof m !== 'number') throw this.#wrong(name, 'a list of numbers')
      return m
    })
  }

  /** One dim, several, or undefined. */
  dims(name: string): number | number[] | undefined {
    if (!this.has(name)) return undefined
    return Array.isArray(this.get(name)) ? this.numbers(name) : this.number(name)
  }

  /** `{ dtype }` if one is named, to be spread into options. */
  dtype(name = 'dtype'): { dtype?: DType } {
    return this.has(name) ? { dtype: this.text(name, '') as DType } : {}
  }

  /** For arguments whose other values do not exist here. */
  only(name: string, expected: Value): void {
    if (this.has(name) && this.get(name) !== expected)
      throw new Skip(`${this.#op}: no ${name} = ${JSON.stringify(this.get(name))} here`)
  }
}

/**
 * Sorts a call's arguments by name.
 *
 * @param signature names in PyTorch's order, the first being the sample's input. After `*` come those given by name
 * only; `a|b` are two names of one argument; `sizes...` takes all that is left, as a list or one by one.
 * @throws Skip for an argument the signature does not know.
 */
export function bind(
  op: string,
  signature: string,
  positional: readonly Value[],
  named: Readonly<Record<string, Value>>,
): Arguments {
  const values = new Map<string, Value>()
  const canonical = new Map<string, string>()
  const order: string[] = []
  let byName = false
  for (const word of signature.split(' ')) {
    if (word === '*') byName = true
    else {
      const names = word.replace('...', '').split('|')
      for (const n of names) canonical.set(n, names[0])
      if (!byName) order.push(word.endsWith('...') ? `${names[0]}...` : names[0])
    }
  }
  for (let i = 0; i < positional.length; i++) {
    const name = order[i]
    if (name === undefined)
      throw new Skip(`${op}: ${positional.length} arguments, of which ${order.length} are known`)
    if (name.endsWith('...')) {
      const rest = positional.slice(i)
      values.set(name.slice(0, -3), rest.length === 1 && Array.isArray(rest[0]) ? rest[0] : rest)
      break
    }
    values.set(name, positional[i])
  }
  for (const [name, value] of Object.entries(named)) {
    const known = canonical.get(name)
    if (known === undefined) throw new Skip(`${op}: no argument ${name} here`)
    values.set(known, value)
  }
  return new Arguments(op, values)
}
