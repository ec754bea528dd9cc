import { expectOptions, type Names, show, Tensor } from '@tilegrad/core'
import { buffer, Module } from '../module/module.ts'

/** Parts a function's arguments: those before the last are inputs, the last are its options. */
type Split<P extends readonly unknown[]> =
  Required<P> extends [...infer I, infer O extends object] ? { inputs: I; options: O } : never

/** A module that is a function with options. @internal */
export declare class FunctionModule<I extends readonly unknown[]> extends Module {
  forward(...inputs: I): Tensor
}

/** What `moduleOf` makes, to be extended by a class with a name and a text. @internal */
export type FunctionModuleClass<P extends readonly unknown[]> = new (
  options?: Split<P>['options'],
) => FunctionModule<Split<P>['inputs']> & Readonly<Required<Split<P>['options']>>

const shown = (value: unknown): string =>
  typeof value === 'string' ? `'${value}'` : value instanceof Tensor ? show(value.shape) : String(value)

/**
 * A class of modules out of a function whose last argument is an object of options: its constructor takes these and has
 * them as properties, its `forward` takes the arguments before them. Options that are tensors become buffers.
 *
 * @param defaults every option, with what it is where it is not given.
 * @param changed show only the options that differ from these.
 * @internal
 */
/* @__NO_SIDE_EFFECTS__ */
export function moduleOf<P extends readonly unknown[]>(
  fn: (...args: P) => Tensor,
  defaults: Required<Split<P>['options']>,
  changed = false,
): FunctionModuleClass<P> {
  const all = Object.entries<unknown>(defaults)
  class Made extends Module {
    constructor(options: object = {}) {
      super()
      const given = expectOptions(this.constructor.name, options, defaults as Names<object>)
      for (const [name, value] of all) {
        const { [name]: own = value } = given as Record<string, unknown>
        Object.assign(this, { [name]: own instanceof Tensor ? buffer(own) : own })
      }
    }

    #option(name: string): unknown {
      return (this as unknown as Record<string, unknown>)[name]
    }

    forward(...inputs: readonly unknown[]): Tensor {
      const options = Object.fromEntries(all.map(([name]) => [name, this.#option(name)]))
      return fn(...([...inputs, options] as unknown as P))
    }

    override extraRepr(): string {
      return all
        .filter(([name, value]) => !changed || this.#option(name) !== value)
        .map(([name]) => `${name}=${shown(this.#option(name))}`)
        .join(', ')
    }
  }
  return Made as unknown as FunctionModuleClass<P>
}
