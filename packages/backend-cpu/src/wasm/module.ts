/** A module under construction: functions around one imported memory. */

import { pushAll, pushName, pushSection, pushUnsigned } from './bytes.ts'
import { type Func, FunctionBuilder, typeByte, type Vars } from './function.ts'
import { Node, type ValType } from './node.ts'

/** What the bytes may rely on; `detectFeatures` and `Pool.features` have these fields. */
export interface ModuleOptions {
  /** Relaxed SIMD: `madd` and friends become one instruction; without, their exact fallbacks. Default false. */
  readonly relaxed?: boolean
  /** The memory imported is shared between threads. Default false. */
  readonly shared?: boolean
}

/** The signature of kernels: rows [start, end), address of the parameter block, index of the thread. */
export const kernelParams = ['i32', 'i32', 'i32', 'i32'] as const

/** The largest memory that 32-bit addresses reach, in pages of 64 KiB; a shared memory must state a maximum. */
const maxPages = 65536

interface Entry {
  readonly type: number
  code: readonly number[]
  name: string | undefined
}

/** Bytes in memory that is not shared, said so that compilers before 5.7 understand it, too. */
type Bytes = ReturnType<typeof Uint8Array.from>

/** Builds the bytes of a WebAssembly module that imports its memory as `env.memory`. */
export class ModuleBuilder {
  readonly #relaxed: boolean
  readonly #shared: boolean
  readonly #types = new Map<string, number>()
  readonly #functions: Entry[] = []

  constructor(options: ModuleOptions = {}) {
    this.#relaxed = options.relaxed ?? false
    this.#shared = options.shared ?? false
  }

  /** Whether `madd` and friends are single instructions in this module. */
  get relaxed(): boolean {
    return this.#relaxed
  }

  /**
   * Adds a function. `body` receives the builder and the parameters as variables; the expression it returns, if
   * any, is the function's result.
   */
  func<const P extends readonly ValType[], R extends ValType>(
    params: P,
    body: (f: FunctionBuilder, ...params: Vars<P>) => Node<R>,
  ): Func<P, R>
  func<const P extends readonly ValType[]>(
    params: P,
    body: (f: FunctionBuilder, ...params: Vars<P>) => void,
  ): Func<P, null>
  func<const P extends readonly ValType[]>(
    params: P,
    body: (f: FunctionBuilder, ...params: Vars<P>) => unknown,
  ): Func<P> {
    const f = new FunctionBuilder(params, this.#relaxed)
    const end = body(f, ...f.params(params))
    const { code, result } = f.finish(end instanceof Node ? end : undefined)
    const type = this.#type(params, result)
    this.#functions.push({ type, code, name: undefined })
    return { index: this.#functions.length - 1, params, result }
  }

  /** Makes a function callable from JavaScript under a name; also the name that stack traces show. */
  export(name: string, func: Func): void {
    const entry = this.#functions[func.index]
    if (entry === undefined) throw new Error(`export ${name}: the function is not of this module`)
    entry.name = name
  }

  /** Adds and exports a kernel: see the example in `index.ts`. */
  kernel(name: string, body: (f: FunctionBuilder, ...params: Vars<typeof kernelParams>) => void): Func {
    const func = this.func(kernelParams, body)
    this.export(name, func)
    return func
  }

  /** The bytes of the module. */
  build(): Bytes {
    const out = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00]

    const types: number[] = []
    pushUnsigned(types, this.#types.size)
    for (const signature of this.#types.keys()) {
      const [params = '', result = ''] = signature.split('>')
      types.push(0x60)
      for (const list of [params, result]) {
        const names = list === '' ? [] : (list.split(',') as ValType[])
        pushUnsigned(types, names.length)
        for (const name of names) types.push(typeByte[name])
      }
    }
    pushSection(out, 1, types)

    const imports = [1]
    pushName(imports, 'env')
    pushName(imports, 'memory')
    imports.push(0x02, this.#shared ? 0x03 : 0x00, 0)
    if (this.#shared) pushUnsigned(imports, maxPages)
    pushSection(out, 2, imports)

    const functions: number[] = []
    pushUnsigned(functions, this.#functions.length)
    for (const entry of this.#functions) pushUnsigned(functions, entry.type)
    pushSection(out, 3, functions)

    const named = [...this.#functions.entries()].filter(([, entry]) => entry.name !== undefined)
    const exports: number[] = []
    const names: number[] = []
    pushUnsigned(exports, named.length)
    pushUnsigned(names, named.length)
    for (const [index, entry] of named) {
      pushName(exports, entry.name as string)
      exports.push(0x00)
      pushUnsigned(exports, index)
      pushUnsigned(names, index)
      pushName(names, entry.name as string)
    }
    pushSection(out, 7, exports)

    const code: number[] = []
    pushUnsigned(code, this.#functions.length)
    for (const entry of this.#functions) {
      pushUnsigned(code, entry.code.length)
      pushAll(code, entry.code)
    }
    pushSection(out, 10, code)

    // The name section: profilers and the stack traces of traps then say `axpy`, not `wasm-function[0]`.
    const custom: number[] = []
    pushName(custom, 'name')
    pushSection(custom, 1, names)
    pushSection(out, 0, custom)
    return Uint8Array.from(out)
  }

  #type(params: readonly ValType[], result: ValType | null): number {
    const signature = `${params.join(',')}>${result ?? ''}`
    const known = this.#types.get(signature)
    if (known !== undefined) return known
    this.#types.set(signature, this.#types.size)
    return this.#types.size - 1
  }
}
