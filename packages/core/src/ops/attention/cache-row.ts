import * as e from '../../expr/expr.ts'
import { program } from '../../expr/program.ts'

/**
 * What is written where one token more comes into caches: keys, and values, (B, Hk, S, D), with the newest key and value,
 * (B, Hk, 1, D), in the row whose number the last input has. Where attention to those caches follows in a compiled
 * function, a backend may write the row by the way: see `attention_row`.
 */
export const cacheRow = program('cache_row', 5, ([keys, key, values, value, at]) => {
  const here = e.eq(e.coord(-2), at)
  return [e.select(here, key, keys), e.select(here, value, values)]
})
