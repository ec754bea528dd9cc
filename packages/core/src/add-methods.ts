import { Tensor } from './tensor/tensor.ts'

/**
 * Makes functions whose first argument is a tensor its methods. Families that few programs need do it themselves, so that a
 * bundle has them, and their methods, only where one of them is used, or `@tilegrad/core/methods` is imported.
 */
export function addMethods(functions: Readonly<Record<string, unknown>>): void {
  for (const [name, fn] of Object.entries(functions))
    Object.defineProperty(Tensor.prototype, name, {
      value(this: Tensor, ...rest: unknown[]) {
        return (fn as (...args: unknown[]) => unknown)(this, ...rest)
      },
      writable: true,
      configurable: true,
    })
}
