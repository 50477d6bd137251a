/** Between how many replicas a pool may have. */
export interface Limits {
  minimum: number;
  maximum: number;
}

export class PendingLimits {
  constructor(changed: () => void);
  dispose(): void;
  shown(pool: string, limits: Limits): Limits;
  request(pool: string, limits: Limits, send: () => Promise<unknown>): Promise<void>;
}
