// One workload of one framework in a process of its own: node FILE WORKLOAD RUNS THREADS. Prints one line of JSON:
// { ms, values } with the median time and the results at the positions of inputs.ts, or { error }.

/**
 * @param {Record<string, (workload: string) => any>} workloads by name; each prepares and returns
 *   { run, values }: one execution (awaited), and what it computed.
 */
export async function serve(workloads, start = async () => {}) {
  const [workload = '', runs = '5'] = process.argv.slice(2)
  try {
    const prepare = workloads[workload]
    if (!prepare) return print({})
    await start()
    const { run, values } = await prepare(workload)
    const computed = Array.from(await values())
    const once = async () => {
      const begin = performance.now()
      await run()
      return performance.now() - begin
    }
    const first = await once()
    // What takes over 20 seconds is run once.
    if (first > 20_000) return print({ ms: first, values: computed })
    const last = Math.min(first, await once())
    // Short ones are repeated within a run, so that a run takes 20 ms or more; long ones run three times.
    const repeat = Math.max(1, Math.min(10000, Math.round(20 / last)))
    const times = []
    for (let i = 0; i < (last > 1000 ? 3 : Number(runs)); i++) {
      const begin = performance.now()
      for (let r = 0; r < repeat; r++) await run()
      times.push((performance.now() - begin) / repeat)
    }
    print({ ms: median(times), values: computed })
  } catch (error) {
    print({ error: String(error instanceof Error ? error.message : error).split('\n')[0] })
  }
}

/** @param {number[]} list */
const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1]

function print(/** @type {unknown} */ result) {
  process.stdout.write(`\n${JSON.stringify(result)}\n`, () => process.exit(0))
}
