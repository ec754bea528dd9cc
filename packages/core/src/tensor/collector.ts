/** How Node is asked to collect garbage at once. Bundles for browsers get `collector-none.ts`: nobody can be asked there. */

interface NodeModules {
  'node:v8': { setFlagsFromString(flag: string): void }
  'node:vm': {
    runInNewContext(code: string): () => void
    createContext(globals: object, options: { microtaskMode: 'afterEvaluate' }): object
    runInContext(code: string, context: object): unknown
  }
}

/** Collects all garbage at once; null where that cannot be asked for. */
export function findCollector(): (() => void) | null {
  const { process } = globalThis as {
    process?: { getBuiltinModule?<M extends keyof NodeModules>(name: M): NodeModules[M] }
  }
  try {
    const v8 = process?.getBuiltinModule?.('node:v8')
    const vm = process?.getBuiltinModule?.('node:vm')
    if (!v8 || !vm) return null
    v8.setFlagsFromString('--expose-gc')
    const gc = vm.runInNewContext('gc')
    v8.setFlagsFromString('--no-expose-gc')
    const context = vm.createContext({}, { microtaskMode: 'afterEvaluate' })
    return () => {
      vm.runInContext('0', context)
      gc()
    }
  } catch {
    return null
  }
}
